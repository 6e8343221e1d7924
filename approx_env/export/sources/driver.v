// Feeds an element with words: an operation, and 32 bits for it. `verilog.py` writes them.
module driver #(
    parameter [7:0] V1 = 8'd1,
    parameter [7:0] V2 = 8'd2,
    parameter WORDS = 1
) (
    input wire clock
);
    localparam START = 0, PRODUCT = 1, CHECK_SUM = 2, CHECK_MULTIPLICATIONS = 3, CHECK_CODE = 4, END = 5;
    reg [39:0] words [0:WORDS-1];
    integer place = 0, checks = 0, wrong = 0, multiplications = 0;
    reg ready = 0, done = 0;
    initial #1 ready = 1; // the words are read by then, and the clock begins later

    wire [7:0] operation = words[place][39:32];
    wire [31:0] data = words[place][31:0];
    wire multiplies;
    wire signed [31:0] exact, sum;
    wire signed [23:0] with_v1, with_v2;
    wire [7:0] code;
    element #(.V1(V1), .V2(V2)) dut (
        .clock(clock), .start(operation == START), .valid(operation == PRODUCT), .code(data[15:8]),
        .weight(data[7:0]), .bias(data), .multiplies(multiplies), .exact(exact), .with_v1(with_v1),
        .with_v2(with_v2)
    );
    total #(.V1(V1), .V2(V2)) close (.exact(exact), .with_v1(with_v1), .with_v2(with_v2), .sum(sum));
    requantise last (.sum(sum), .multiplier(data[23:0]), .code(code));

    task check(input good);
        begin
            checks = checks + 1;
            if (good !== 1'b1) wrong = wrong + 1;
        end
    endtask

    always @(negedge clock)
        if (ready && !done) begin
            case (operation)
                START: multiplications = 0;
                PRODUCT: multiplications = multiplications + multiplies;
                CHECK_SUM: check(sum === data);
                CHECK_MULTIPLICATIONS: check(multiplications === data);
                CHECK_CODE: check(code === data[31:24]);
                END: done = 1;
                default: check(0);
            endcase
        end
    // The element takes what the word said at this edge; then comes the next word.
    always @(posedge clock) if (ready && !done) place <= place + 1;
endmodule
