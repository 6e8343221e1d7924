// The sum of an element's products, once they are all there. Many elements may share it.
module total #(
    parameter [7:0] V1 = 8'd1,
    parameter [7:0] V2 = 8'd2
) (
    input wire signed [31:0] exact,
    input wire signed [23:0] with_v1,
    input wire signed [23:0] with_v2,
    output wire signed [31:0] sum
);
    wire signed [8:0] v1 = {1'b0, V1};
    wire signed [8:0] v2 = {1'b0, V2};
    assign sum = exact + v1 * with_v1 + v2 * with_v2;
endmodule
