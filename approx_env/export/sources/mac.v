// A plain multiplier-accumulator, to compare `element` with.
module mac (
    input wire clock,
    input wire start,
    input wire valid,
    input wire [7:0] code,
    input wire signed [7:0] weight,
    input wire signed [31:0] bias,
    output reg signed [31:0] sum
);
    wire signed [8:0] factor = {1'b0, code};
    wire signed [16:0] product = factor * weight;

    always @(posedge clock)
        if (start) sum <= bias;
        else if (valid) sum <= sum + product;
endmodule
