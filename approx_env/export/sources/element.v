// Takes products of codes and weights, one a cycle. A code 0 is skipped. Weights that meet V1 or V2 are only added up;
// `total` multiplies each of these sums once. Operands of the multiplier rest at 0 unless a code is exact. V1 and V2 are
// those of the layer that is read, whose zero point is 0.
module element #(
    parameter [7:0] V1 = 8'd1,
    parameter [7:0] V2 = 8'd2
) (
    input wire clock,
    input wire start, // takes the bias, and forgets what was added up
    input wire valid, // a code and its weight are there
    input wire [7:0] code,
    input wire signed [7:0] weight,
    input wire signed [31:0] bias,
    output wire multiplies, // whether this code takes the multiplier
    output reg signed [31:0] exact,
    output reg signed [23:0] with_v1, // sums of at most 2^30 / 255 weights
    output reg signed [23:0] with_v2
);
    wire zero = code == 8'd0;
    wire first = code == V1;
    wire second = code == V2;
    assign multiplies = valid & ~(zero | first | second);

    wire signed [8:0] factor = multiplies ? {1'b0, code} : 9'sd0;
    wire signed [7:0] other = multiplies ? weight : 8'sd0;
    wire signed [16:0] product = factor * other;

    always @(posedge clock)
        if (start) begin
            exact <= bias;
            with_v1 <= 24'sd0;
            with_v2 <= 24'sd0;
        end else if (valid) begin
            if (multiplies) exact <= exact + product;
            if (first) with_v1 <= with_v1 + weight;
            if (second) with_v2 <= with_v2 + weight;
        end
endmodule
