import pandas as pd
import pytest

from search import architecture


def row(sr: float, pct3x3: float, epoch: int, accuracy: float) -> dict:
    return {
        "model": "squeezenet", "dataset": "digits", "sr": sr, "pct3x3": pct3x3, "epoch": epoch, "epochs": 3,
        "float_bytes": int(1e6 * sr), "validation_accuracy": accuracy,
    }  # fmt: skip


ROWS = pd.DataFrame([row(0.5, 0.5, 1, 0.3), row(0.25, 0.5, 1, 0.4), row(0.5, 0.5, 2, 0.6), row(0.5, 0.5, 3, 0.5)])


def test_last_epochs():
    last = architecture.last_epochs(ROWS)
    assert last[["sr", "epoch", "validation_accuracy"]].values.tolist() == [[0.5, 3, 0.5], [0.25, 1, 0.4]]


@pytest.mark.parametrize("along", ["sr", "pct3x3"])
def test_figures(along, tmp_path):
    architecture.draw(ROWS, along, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--sr 0,0.5", "--sr must be above 0 and at most 1, got 0,0.5"),
        ("--sr 0.5,1.5", "--sr must be above 0 and at most 1, got 0.5,1.5"),
        ("--sr 0.5,0.5", "--sr must be different numbers, as 0.25,0.5, got '0.5,0.5'"),
        ("--pct3x3 0.5,1", "--pct3x3 must be above 0 and below 1, got 0.5,1"),
        ("--pct3x3 half", "--pct3x3 must be different numbers, as 0.25,0.5, got 'half'"),
        ("--dataset imagefolder", "--dataset imagefolder needs --data-dir, a folder with train/ and test/ (or val/)"),
        ("--run-name a/b", "--run-name must be one folder name of at most 100 characters, got 'a/b'"),
        ("--address here", "--address must be local, auto or HOST:PORT, got 'here'"),
    ],
)
def test_bad_input(argv, said, capsys, tmp_path):
    assert architecture.main([*argv.split(), "--results", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {said}"]
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_no_squeezenets(capsys):
    assert architecture.main(["--model", "alexnet", "--epochs", "0"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: --model must be squeezenet, ") and first.endswith(", got 'alexnet'")
    assert second == "error: --epochs must be at least 1, got 0"
