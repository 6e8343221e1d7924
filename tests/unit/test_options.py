import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from approx_env import options
from approx_env.errors import InputError
from approx_env.options import flag, integer, listed, number, option, switch


@dataclass(frozen=True)
class Table:
    count: int = integer(3, "how many", 1)
    capped: int | None = integer(None, "how many of them", 0, high=9)
    rate: float = number(0.5, "how fast", above=0, high=10)
    share: float = number(0.1, "how much", low=0, below=1)
    level: float = number(-2.0, "how high", low=-4, high=4)
    open_part: float = number(0.5, "of 100 %", above=0, below=1)
    kind: str = option("slow", "which way", choices=("slow", "fast", "none"))
    loud: bool = switch(True, "noise")
    quick: bool = switch(False, "haste")
    sides: tuple[int, ...] = option((1, 2), "lengths", type=listed(int), kind="different whole numbers", low=1, high=99)
    repeated: tuple[int, ...] = option((0,), "lengths", type=listed(int, distinct=False), kind="whole numbers")
    name: str | None = option(None, "what it is called", metavar="NAME")


def parse(*argv: str, contradictions=None) -> Table:
    return options.parse(Table, "prog", "Does it.", list(argv), contradictions)


def problems(*argv: str, contradictions=None) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(*argv, contradictions=contradictions)
    return caught.value.problems


def test_defaults():
    assert parse() == Table()
    assert Table() == Table(3, None, 0.5, 0.1, -2.0, 0.5, "slow", True, False, (1, 2), (0,), None)


def test_values_are_converted():
    argv = "--count 7 --capped 0 --rate 1e1 --share 0 --level -4 --open-part .25 --kind fast --loud off --sides 99,1"
    made = parse(*argv.split(), "--repeated", "2,2,-3", "--name", "a b")
    assert made == Table(7, 0, 10.0, 0.0, -4.0, 0.25, "fast", False, False, (99, 1), (2, 2, -3), "a b")
    assert type(made.count) is int and type(made.rate) is float and made.loud is False
    assert parse("--loud", "on").loud is True


def test_a_switch_that_is_off_is_switched_on_by_its_flag_alone():
    assert parse("--quick").quick is parse("--quick", "on").quick is parse("--quick", "--count", "4").quick is True
    assert parse("--quick", "off").quick is False
    assert problems("--quick", "") == ["--quick must be given a value, got '': leave it out where the default will do"]


def test_options_may_be_left_out():
    made = options.parse(Table, "prog", "", ["--count", "5"], only=("count", "name"))
    assert made == Table(count=5)
    with pytest.raises(InputError, match="unrecognized arguments: --rate 1"):
        options.parse(Table, "prog", "", ["--rate", "1"], only=("count", "name"))


def test_flags_have_dashes():
    assert flag("small_epochs") == "--small-epochs"
    assert parse("--open-part=0.75").open_part == 0.75


def test_argv_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["prog", "--count", "5"])
    assert options.parse(Table, "prog", "Does it.", None).count == 5


@pytest.mark.parametrize(
    ("name", "text", "must_be"),
    [
        ("--count", "0", "at least 1"),
        ("--count", "-5", "at least 1"),
        ("--count", "1.5", "a whole number"),
        ("--capped", "10", "at least 0 and at most 9"),
        ("--capped", "-1", "at least 0 and at most 9"),
        ("--rate", "0", "above 0 and at most 10"),
        ("--rate", "10.01", "above 0 and at most 10"),
        ("--rate", "nan", "above 0 and at most 10"),
        ("--rate", "inf", "above 0 and at most 10"),
        ("--rate", "quick", "a number"),
        ("--share", "1", "at least 0 and below 1"),
        ("--share", "-0.1", "at least 0 and below 1"),
        ("--share", "NaN", "at least 0 and below 1"),
        ("--level", "4.5", "at least -4 and at most 4"),
        ("--open-part", "0", "above 0 and below 1"),
        ("--open-part", "1", "above 0 and below 1"),
        ("--kind", "Fast", "slow, fast or none"),
        ("--loud", "true", "on or off"),
        ("--sides", "1,1", "different whole numbers"),
        ("--sides", "1,,2", "different whole numbers"),
        ("--sides", "5,100", "at least 1 and at most 99"),
        ("--repeated", "1,x", "whole numbers"),
    ],
)
def test_a_bad_value_is_told(name, text, must_be):
    got = text if must_be[:2] in ("at", "ab") else f"'{text}'"
    assert problems(name, text) == [f"{name} must be {must_be}, got {got}"]


FLAGS = "--count --capped --rate --share --level --open-part --kind --loud --sides --repeated --name".split()


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_value_is_told_and_never_the_default(name, text):
    assert problems(name, text) == [
        f"{name} must be given a value, got {text!r}: leave it out where the default will do"
    ]


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("bytes_", [b"\xff", b"a\xc3", b"\xed\xa0\x80"])
def test_bytes_that_are_no_utf8_are_told(name, bytes_):
    (problem,) = problems(name, bytes_.decode(errors="surrogateescape"))
    assert problem.startswith(f"{name} must be UTF-8 text, got '")
    problem.encode()  # whoever prints it


def test_bytes_that_are_no_utf8_come_from_a_shell():
    program = "import sys; from approx_env import errors, options; from tests.unit.test_options import Table; "
    program += "sys.exit(errors.exit_status(lambda: options.parse(Table, 'prog', '', None)))"
    ended = subprocess.run([sys.executable, "-c", program, "--name", b"a\xffb"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --name must be UTF-8 text, got 'a\\udcffb'\n"


def test_text_of_any_language_will_do():
    for text in ("été", "日本", "\N{SNOWMAN}", "a b", "-", "0"):
        assert parse(f"--name={text}").name == text


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**30])
def test_whole_numbers_of_more_than_63_bits_are_told(value):
    for name in ("--count", "--repeated"):
        assert problems(f"{name}={value}") == [f"{name} must be a whole number of at most 63 bits, got {value}"]
    assert problems(f"--repeated=1,{value}") == [f"--repeated must be a whole number of at most 63 bits, got 1,{value}"]


def test_whole_numbers_of_63_bits_will_do():
    assert parse("--count", str(2**63 - 1), f"--repeated={1 - 2**63}") == Table(count=2**63 - 1, repeated=(1 - 2**63,))


def test_a_number_without_bounds():
    @dataclass(frozen=True)
    class Free:
        x: float = number(0.0, "anything")

    assert options.parse(Free, "prog", "", ["--x=-1e300"]).x == -1e300
    with pytest.raises(InputError, match=r"^--x must be \w.*, got '?nan'?$"):
        options.parse(Free, "prog", "", ["--x", "nan"])


@given(st.floats(width=32))
@settings(max_examples=50)
def test_what_is_accepted_lies_within_the_bounds(value):
    text = f"--open-part={value!r}"
    if 0 < value < 1:
        assert parse(text).open_part == value
    else:
        assert len(problems(text)) == 1


def test_all_bad_values_are_reported_at_once_in_the_order_of_the_table():
    argv = ["--sides", "x", "--loud", "x", "--kind", "x", "--rate", "x", "--capped", "x", "--count", "x"]
    found = problems(*argv)
    assert [problem.split()[0] for problem in found] == ["--count", "--capped", "--rate", "--kind", "--loud", "--sides"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--speed", "3"], "unrecognized arguments: --speed 3"),
        (["--coun", "3"], "unrecognized arguments: --coun 3"),  # no abbreviations
        (["--rate"], "argument --rate: expected one argument"),
        (["7"], "unrecognized arguments: 7"),
    ],
)
def test_an_unknown_or_incomplete_flag_is_told(argv, said):
    assert problems(*argv) == [f"{said} (prog --help explains the options)"]


# -- contradictions


def contradict(made: Table, given: set[str]):
    if made.count > 5 and made.kind == "slow":
        yield {"count", "kind"}, f"--count {made.count} is too much for --kind slow"
    if "name" in given:
        yield {"name"}, "--name is for nothing"


def test_contradictions_see_values_and_what_was_given():
    seen = []

    def watch(made, given):
        seen.append((made, given))
        return ()

    assert parse("--count", "9", "--loud", "on", contradictions=watch) == Table(count=9)
    assert seen == [(Table(count=9), {"count", "loud"})]


def test_contradictions_are_reported_together_behind_bad_values():
    argv = ["--count", "9", "--name", "x"]
    expected = ["--count 9 is too much for --kind slow", "--name is for nothing"]
    assert problems(*argv, contradictions=contradict) == expected
    bad = "--rate must be a number, got 'x'"
    assert problems(*argv, "--rate", "x", contradictions=contradict) == [bad, *expected]
    assert parse("--count", "9", "--kind", "fast", contradictions=contradict).count == 9


@pytest.mark.parametrize("bad", [("--kind", "x"), ("--count", "x")])
def test_contradictions_of_bad_options_are_left_out(bad):
    found = problems("--count", "9", *bad, "--name", "x", contradictions=contradict)
    assert [problem.split()[:3] for problem in found] == [[bad[0], "must", "be"], ["--name", "is", "for"]]


# -- help


def test_help_shows_defaults_and_choices(capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "Does it.",
        "--count N how many (default 3)",
        "--capped N how many of them --rate",  # None is no default to show
        "--rate X how fast (default 0.5)",
        "--open-part X of 100 % (default 0.5)",
        "--kind {slow,fast,none} which way (default slow)",
        "--loud [{on,off}] noise (default on)",
        "(default 1,2)",
        "--name NAME what it is called",
    ):
        assert part in shown


def test_a_switch_alone_is_on():
    assert parse("--loud", "off").loud is False
    assert parse("--loud", "off", "--loud").loud is True
    assert parse("--loud", "--count", "5") == Table(count=5)
