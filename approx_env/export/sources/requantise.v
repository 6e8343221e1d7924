// Makes a code of a sum: one multiplier for each output channel, one shift of 16 for all, halves rounded up.
module requantise (
    input wire signed [31:0] sum,
    input wire [23:0] multiplier,
    output wire [7:0] code
);
    wire signed [24:0] factor = {1'b0, multiplier};
    wire signed [56:0] product = sum * factor;
    wire signed [57:0] rounded = product + 58'sd32768;
    assign code = rounded[57] ? 8'd0 : |rounded[56:24] ? 8'd255 : rounded[23:16];
endmodule
