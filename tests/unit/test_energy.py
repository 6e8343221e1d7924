"""Tables of energy: the shipped ones, and files that somebody wrote."""

import tomllib

import pytest

from approx_env.errors import InputError
from approx_env.int8 import energy
from approx_env.int8.energy import Energy

WHOLE = 'name = "mine"\nsource = "a paper"\nzero_pj = 0\nshared_pj = 0.5\nexact_pj = 2\n'


def test_the_shipped_tables_are_what_their_sources_say():
    """Exact is multiply and add, shared the add alone: Horowitz 0.2 and 0.1 pJ, Jouppi 0.07 and 0.03 pJ."""
    first, second = (energy.read(name) for name in energy.SHIPPED)
    assert (first.name, first.zero_pj, first.shared_pj, first.exact_pj) == ("Horowitz 45 nm", 0.0, 0.1, 0.3)
    assert (second.name, second.zero_pj, second.shared_pj, second.exact_pj) == ("Jouppi 7 nm", 0.0, 0.03, 0.1)
    assert "ISSCC 2014" in first.source and "ISCA 2021" in second.source


def test_every_shipped_file_is_named_and_says_what_it_counts():
    assert {path.stem for path in energy.FOLDER.iterdir()} == set(energy.SHIPPED)
    for name in energy.SHIPPED:
        text = (energy.FOLDER / f"{name}.toml").read_text()
        assert energy.SCOPE.capitalize() in text and "Derived from" in text and tomllib.loads(text)


def test_relative_energy_by_hand():
    mine = Energy("mine", "a paper", 0.25, 0.5, 2.0)
    assert mine.relative((0.5, 0.125, 0.125, 0.25)) == (0.125 + 0.125 + 0.5) / 2
    assert mine.relative((0, 0, 0, 1)) == 1.0


def test_a_file_of_the_users(tmp_path):
    (tmp_path / "mine.toml").write_text(WHOLE)
    assert energy.read(str(tmp_path / "mine.toml")) == Energy("mine", "a paper", 0.0, 0.5, 2.0)


BAD = {
    "lacks shared_pj": WHOLE.replace("shared_pj = 0.5\n", ""),
    "lacks name": WHOLE.replace('name = "mine"\n', ""),
    "shared_pj must be a number at least 0": WHOLE.replace("0.5", "-0.5"),
    "exact_pj must be a number above 0": WHOLE.replace("exact_pj = 2", "exact_pj = 0"),
    "at most 1e+06, got inf": WHOLE.replace("0.5", "inf"),
    "at most 1e+06, got nan": WHOLE.replace("0.5", "nan"),
    "at most 1e+06, got 1000000": WHOLE.replace("0.5", "1" + "0" * 400),
    "at most 1e+06, got True": WHOLE.replace("0.5", "true"),
    "at most 1e+06, got '0.5'": WHOLE.replace("0.5", '"0.5"'),
    "'memory_pj' is unknown": WHOLE + "memory_pj = 5\n",
    "name must be a line of text": WHOLE.replace('"mine"', "7"),
    "source must be a line of text": WHOLE.replace('"a paper"', '" "'),
    "cannot be read (Invalid": "name = \n",
    "cannot be read (it is longer": WHOLE + "#" * 70_000,
    "cannot be read (Cannot overwrite": WHOLE + WHOLE,
    "cannot be read (maximum recursion": "a = " + "[" * 30_000,
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_file_is_one_error(words, tmp_path):
    (tmp_path / "bad.toml").write_text(BAD[words])
    with pytest.raises(InputError) as caught:
        energy.read(str(tmp_path / "bad.toml"))
    (problem,) = caught.value.problems
    assert problem.startswith("--cost ") and words in problem and "horowitz-45nm" in problem and len(problem) < 600


@pytest.mark.parametrize("place", ["none.toml", "."])
def test_a_file_that_is_none(place, tmp_path):
    with pytest.raises(InputError, match=r"--cost must be horowitz-45nm or jouppi-7nm or a TOML file"):
        energy.read(str(tmp_path / place))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        energy.read(str(tmp_path / "bad.toml"))


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    (tmp_path / "bad.toml").write_text('zero_pj = -1\nname = "x"\nother = 1\n')
    with pytest.raises(InputError) as caught:
        energy.read(str(tmp_path / "bad.toml"))
    assert all(word in str(caught.value) for word in ("lacks source", "lacks exact_pj", "zero_pj must", "'other'"))
