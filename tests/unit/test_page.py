"""What is on a page: of runs made by hand, of older ones, of ones under way; and that it lets nothing in or out."""

import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from approx_env.errors import InputError
from search import sensitivity
from search.results import page, report, store
from search.results.folder import Folder, as_json
from search.results.page import figures, reading, sections, verdict
from search.stages import changes
from tests.unit.test_inspection import ABOUT, BEST, LAYERS, OLDER, ROWS, write_baselines, write_part

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # matplotlib's, of a figure that has no room
EVIL = "<script>alert('x')</script>$a_b$&\"'"
SPLIT = {"teacher": 0.9, "student": 0.8, "drop_points": 10.0, "drop_error_points": 0.5}


class Reader(html.parser.HTMLParser):
    """The text of a page outside of its style and script, and every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.parts, self.tags, self._inside = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("style", "script"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("style", "script"):
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def write_histograms(folder: Path, counts: np.ndarray) -> None:
    rows = [{"layer": layer, "code": code, "count": int(count)} for layer in LAYERS for code, count in enumerate(counts)]
    (folder / store.HISTOGRAMS).write_bytes(store.parquet(rows, store.HISTOGRAM_COLUMNS))


def write_classes(folder: Path, name: str = "cat") -> None:
    rows = [
        {"class": name, "images": 4, "acc_teacher": 1.0, "acc_student": 0.75, "change_points": -25.0},
        {"class": "dog", "images": 2, "acc_teacher": 0.5, "acc_student": 1.0, "change_points": 50.0},
        {"class": "none", "images": 0, "acc_teacher": None, "acc_student": None, "change_points": None},
    ]
    (folder / store.CLASSES).write_bytes(store.parquet(rows, store.CLASS_COLUMNS))
    picture = changes.png(np.zeros((3, 8, 8), np.uint8))
    changed = [{"position": 7, "label": name, "teacher": name, "student": "dog", "png": picture}]
    (folder / store.CHANGED).write_bytes(store.parquet(changed, store.CHANGED_COLUMNS))
    maps = [{"position": 0, "label": name, "layer": layer, "png": picture, "teacher": picture, "student": picture}
            for layer in LAYERS[:2]]  # fmt: skip
    (folder / store.ATTENTION).write_bytes(store.parquet(maps, store.ATTENTION_COLUMNS))


def write_sensitivity(folder: Path) -> None:
    rows = [
        dict.fromkeys(sensitivity.COLUMNS.names, 0)
        | {"model": "squeezenet", "dataset": "digits", "teacher": "0", "sites": "standard"}
        | {"layer": layer, "setting": setting, "drop_points": drop}
        for setting, drops in (("approximated", (1.5, 0.25, 3.0)), ("exact", (2.0, 2.75, 0.0)))
        for layer, drop in zip((*LAYERS, sensitivity.ALL), drops, strict=True)
    ]
    (folder / sensitivity.FILE).write_bytes(store.parquet(rows, sensitivity.COLUMNS))


def write_student(folder: Path) -> None:
    measured = {"accuracy": 0.875, "drop_points": 2.5, "drop_error_points": 0.25, "kd": 0.125, "relative_energy": 0.5,
                "mac_zero_all": 0.25, "mac_shared_all": 0.25, "mac_exact_all": 0.5}  # fmt: skip
    told = {"chosen": "trained", "correction": "deviation", "recipe": {"seed": 0}, "test": measured,
            "validation": {"codes alone": measured | {"drop_points": 9.0}, "trained": measured},
            "curve": [{"step": 2, "drop_points": 6.5, "kd": 0.5}, {"step": 4, "drop_points": 2.5, "kd": 0.125}]}  # fmt: skip
    (folder / store.STUDENT_SUMMARY).write_bytes(as_json(told))


@pytest.fixture
def old(tmp_path) -> Path:
    """A finished run that has no more than the oldest ones: rows, top.parquet, best.json."""
    folder = tmp_path / "r"
    (folder / store.EPISODES).mkdir(parents=True)
    write_part(folder, ROWS)
    measured = {"validation_accuracy": 0.8, "validation_drop_points": 10.0, "validation_mac_exact_all": 0.625}
    rows = [ROWS[3] | measured, ROWS[2] | measured]
    (folder / store.TOP).write_bytes(store.parquet(rows, store.validated_schema(LAYERS)))
    about = {name: value for name, value in ABOUT.items() if name != "cost"}
    metrics = {name: value for name, value in BEST["metrics"].items() if name not in ("cost", "test")}
    (folder / store.RUN).write_bytes(as_json(about))
    (folder / store.BEST).write_bytes(as_json(BEST | {"metrics": metrics}))
    return folder


@pytest.fixture
def whole(old) -> Path:
    """A finished run with all that a page shows, but for a front."""
    write_baselines(old)
    counts = np.zeros(256, int)
    counts[[0, 2, 3, 7, 100]] = 5, 1, 1, 2, 1  # of t1 = 1, t2 = 3, tmax = 35: 50, 20, 20 and 10 %
    write_histograms(old, counts)
    write_classes(old)
    write_sensitivity(old)
    more = {"command": ["python", "-m", "search.run", "--model", "squeezenet"], "commit": "0123abc", "images": "f00d",
            "host": "here", "share_of_all_macs": 0.5}  # fmt: skip
    about = ABOUT | more
    about["layers"] = {layer: told | {"quintile": [1, 2, 3, 5]} for layer, told in ABOUT["layers"].items()}
    (old / store.RUN).write_bytes(as_json(about))
    metrics = BEST["metrics"] | {"validation": SPLIT, "test": SPLIT}
    cost = {"table": "Horowitz 45 nm", "relative_energy": 0.625, "mac_zero_all": 0.25, "mac_shared_all": 0.125,
            "mac_exact_all": 0.625}  # fmt: skip
    (old / store.BEST).write_bytes(as_json(BEST | {"metrics": metrics | {"cost": cost}}))
    return old


def read(folder: Path, **more) -> Reader:
    return Reader(page.of_run(reading.read(Folder(folder)), **more))


# -- what it says


def test_the_verdict_is_one_line(whole):
    assert verdict.sentence(reading.read(Folder(whole))) == (
        "Teacher 90.00%, with these codes 80.00% on test: a drop of 10.00 points (95\u00a0% interval 9.02 to 10.98). Of all "
        "multiplications 25.0% are zero, 12.5% shared and 62.5% exact; relative energy 0.625 by Horowitz 45 nm."
    )


def test_zeros_that_were_there_anyway_are_told_apart(whole):
    table = pq.read_table(whole / store.BASELINES).to_pandas()
    table.loc[1, ["baseline", "mac_zero_all"]] = ["natural zeros", 0.125]
    (whole / store.BASELINES).write_bytes(store.parquet(table.to_dict("records"), store.baselines_schema(LAYERS)))
    run = reading.read(Folder(whole))
    assert "25.0% are zero (12.5% anyway)" in verdict.sentence(run)
    shares = {"natural": 0.125, "zero": 0.125, "shared": 0.125, "exact": 0.625}
    assert verdict.of_all(run, verdict.measured(run)) == shares
    assert "zero in the exact network, too 12.50%" in read(whole).text


def test_a_run_from_before_the_cost_model_tells_shares_of_its_layers(old):
    run = reading.read(Folder(old))
    assert verdict.sentence(run) == (
        "Teacher 90.00%, with these codes 80.00% on test: a drop of 10.00 points. Of the layers' multiplications "
        "25.0% are zero, 50.0% shared and 25.0% exact."
    )
    said = read(old).text
    for sentence in ("Shares of all multiplications: the run is from before they were kept.",
                     "Histograms are missing: the run is from before they were kept.",
                     "Baselines: the run is from before they were kept.", "A front: the run searched with one",
                     "What each layer alone costs: the run has no sensitivity.parquet",
                     "A student with weights of its own: python -m search.finetune makes one."):  # fmt: skip
        assert sentence in said


def test_everything_that_the_run_has_is_shown(whole):
    write_student(whole)
    (whole / "c").mkdir()
    (whole / "c" / "manifest.json").write_bytes(as_json({"format": "c"}))
    found = read(whole, links="")
    assert [given["id"] for tag, given in found.tags if tag == "section"] == [
        "cost", "search", "drops", "layers", "sensitivity", "best", "classes", "attention", "beside",
        "adaptation", "provenance",
        "missing",
    ]  # fmt: skip
    for told in ("python -m search.run --model squeezenet", "0123abc", "f00d", "here", "torch 2.15.0",
                 "zero 50.0%, v1 20.0%, v2 20.0%, exact 10.0%", "conv1 1.50 2.00", "all layers 3.00 0.00",
                 "cat 4 100.00% 75.00% -25.00", "is cat teacher: cat codes: dog", "threshold at t1",
                 "A student with weights of its own has 87.50%", "codes alone 9.00 ± 0.49", "c: export for c"):  # fmt: skip
        assert told in found.text, told
    assert ("a", {"href": "c/"}) in found.tags


def test_a_folder_that_is_elsewhere_is_named_without_a_link(whole, tmp_path):
    (whole / "c x").mkdir()
    (whole / "c x" / "manifest.json").write_bytes(as_json({"format": "c"}))
    assert "c x: export for c" in read(whole).text
    assert not [given for tag, given in read(whole).tags if tag == "a" and not given["href"].startswith("#")]
    links = page.links_from(Folder(whole), tmp_path / "pages" / "one.html")
    assert ("a", {"href": "../r/c%20x/"}) in read(whole, links=links).tags


def test_drops_on_search_validation_and_test_stand_side_by_side(whole):
    assert "search 0.25 0.00 validation 10.00 0.98 -9.75 test 10.00 0.98 -9.75" in read(whole).text


def test_the_best_configurations_are_rows_that_can_be_selected(whole):
    found = read(whole)
    keys = [given["data-key"] for tag, given in found.tags if tag == "tr" and "data-key" in given]
    assert keys == ["0", "1"]
    assert {given.get("data-key") for tag, given in found.tags if tag == "g"} >= {"0", "1"}
    assert "1 ppo-seed0-3 yes 0.3000" in found.text and "2 ppo-seed0-2 0.2000" in found.text


def test_a_front_is_shown_with_its_points(whole):
    about = json.loads((whole / store.RUN).read_text())
    about["arguments"]["objective"] = "pareto"
    (whole / store.RUN).write_bytes(as_json(about))
    points = [dict.fromkeys(store.pareto_schema(LAYERS).names, 1) | ROWS[k] | {"chosen": k == 3, "energy_table": "x"}
              | {"validation_drop_points": 1.0 + k, "validation_mac_exact_all": 0.5, "relative_energy": 0.5}
              for k in (2, 3)]  # fmt: skip
    (whole / store.PARETO).write_bytes(store.parquet(points, store.pareto_schema(LAYERS)))
    found = read(whole)
    assert "ppo-seed0-3 yes 50.00% 4.00" in found.text
    assert "A front of 2 points: drop against exact share" in [given.get("aria-label") for _, given in found.tags]


# -- a run that is under way


def test_a_run_that_has_not_chosen_shows_its_rows(whole):
    (whole / store.BEST).unlink()
    found = read(whole, live=True)
    assert "Under way: 8 of 8 configurations scored. Best return so far 0.3000" in found.text
    assert "Codes of the best configuration so far." in found.text and "The run has not chosen yet." in found.text
    assert ("body", {"data-live": None}) in found.tags and ("main", {}) in found.tags


def test_a_run_without_a_row_says_so(whole):
    (whole / store.BEST).unlink()
    (whole / store.TOP).unlink()
    shutil.rmtree(whole / store.EPISODES)
    assert "No configuration has been scored yet." in read(whole).text


@pytest.mark.parametrize(("epochs", "student", "ended"), [(None, False, True), (1.0, False, False), (1.0, True, True)])
def test_a_run_has_ended_with_the_student_that_it_was_asked_for(whole, epochs, student, ended):
    about = json.loads((whole / store.RUN).read_text())
    about["arguments"]["finetune_epochs"] = epochs
    (whole / store.RUN).write_bytes(as_json(about))
    if student:
        write_student(whole)
    assert reading.read(Folder(whole)).ended is ended
    assert (("main", {"data-ended": None}) in read(whole).tags) is ended


# -- curves


def test_a_curve_is_the_best_so_far_to_its_seed_s_end(whole):
    part = store.read(whole)
    part.loc[part["seed"] == 1, "return"] = [0.5, 0.25, 0.75, 0.0]
    rows = part[(part["seed"] == 0) | (part["episode"] < 3)].to_dict("records")
    write_part(whole, rows)
    curves = reading.curves(reading.read(Folder(whole)))
    assert curves[0].tolist() == [0.0, 0.1, 0.2, 0.3] and curves[1].tolist()[:3] == [0.5, 0.5, 0.75]
    assert np.isnan(curves[1][3])


def test_quintile_is_known_where_the_search_tried_it(whole):
    assert reading.read(Folder(whole)).quintile_return == 0.1  # of the episodes with v2 = 5
    about = json.loads((whole / store.RUN).read_text())
    about["layers"]["fire2"]["quintile"] = [1, 2, 3, 9]
    (whole / store.RUN).write_bytes(as_json(about))
    assert reading.read(Folder(whole)).quintile_return is None


# -- several runs


def test_runs_are_compared_in_a_table_and_a_figure(whole, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    (other / store.BEST).unlink()
    runs = [reading.read(Folder(folder)) for folder in (whole, other)]
    found = Reader(page.of_runs(runs))
    assert "1 of 2 runs have chosen. r loses least on test: 10.00 points." in found.text
    assert "90.00% 80.00% 10.00 ± 0.98 10.00 25.0% 12.5% 62.5% 0.625" in found.text
    assert len([tag for tag, given in found.tags if tag == "svg"]) == 1


def test_runs_of_another_teacher_have_a_figure_of_their_own(tmp_path):
    other = shutil.copytree(OLDER, tmp_path / "other")
    about = json.loads((other / store.RUN).read_text())
    (other / store.RUN).write_bytes(as_json(about | {"run": "squeezenet-random"}))
    for path in other.rglob("*.parquet"):
        rows = pq.read_table(path)
        names = pa.array(["squeezenet-random"] * len(rows))
        path.write_bytes(store.arrow_parquet(rows.set_column(rows.schema.get_field_index("run"), "run", names)))
    folders = (OLDER, other, REFERENCE / "squeezenet-hill", REFERENCE / "squeezenet-quintile")
    found = Reader(page.of_runs([reading.read(Folder(folder)) for folder in folders]))
    assert "4 of 4 runs have chosen." in found.text and "loses least" not in found.text
    labels = [given["aria-label"] for tag, given in found.tags if tag == "svg"]
    assert len(labels) == 2 and "squeezenet-ppo" in labels[0] and "squeezenet-random" in labels[0]


# -- what a page is


@pytest.mark.parametrize(
    "name", ["squeezenet-hill", "squeezenet-all-hill", "alexnet-ppo", OLDER, "squeezenet-quintile"]
)
def test_a_committed_run_makes_a_page_below_1_mb_that_asks_for_nothing(name):
    text = page.of_run(reading.read(Folder(REFERENCE / name)), links="")
    assert len(text.encode()) < 1_000_000
    found = Reader(text)
    addresses = [given[name] for _, given in found.tags for name in ("src", "href", "data", "action") if name in given]
    assert all(re.match(r"#|data:", address) for address in addresses), addresses
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    ids = [given["id"] for _, given in found.tags if "id" in given]
    assert len(ids) == len(set(ids))


def test_every_figure_has_a_text_and_a_table(whole):
    found = read(whole)
    figures_there = [given for tag, given in found.tags if tag == "svg"]
    assert figures_there and all(given["role"] == "img" and given["aria-label"] for given in figures_there)
    text = page.of_run(reading.read(Folder(whole)))
    for section in re.findall(r"<section.*?</section>", text, re.DOTALL):
        assert "<svg" not in section or "<table" in section


def test_figures_take_their_colours_from_the_page(whole):
    text = page.of_run(reading.read(Folder(whole)))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--ink)" in drawn and "var(--s0)" in drawn
    assert not re.search(r"(?:fill|stroke): ?#", drawn), "a colour that does not follow from light to dark"
    style = (page.HERE / "page.css").read_text()
    for name in figures.NAMES:
        assert style.count(f"--{name}:") == 2  # light and dark


def test_names_are_text_wherever_they_stand(whole):
    """A folder's name, a layer's, a class's, a command's, a host's."""
    about = json.loads((whole / store.RUN).read_text())
    (whole / store.RUN).write_bytes(as_json(about | {"command": [EVIL], "host": EVIL, "commit": EVIL}))
    write_classes(whole, EVIL)
    (whole / "a<b>").mkdir()
    (whole / "a<b>" / "manifest.json").write_bytes(as_json({"format": EVIL}))
    found = read(whole, links="")
    assert found.text.count(EVIL) >= 7  # command, host, commit, export, class in table and figure, image
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert ("a", {"href": "a%3Cb%3E/"}) in found.tags


def test_what_a_figure_is_told_is_text():
    def draw(axes):
        axes.set(title=EVIL, xlabel="#000001 0.123456")

    drawn = Reader(figures.drawn(draw, "x", EVIL))
    assert EVIL in drawn.text and "#000001 0.123456" in drawn.text
    assert drawn.tags[0][1]["aria-label"] == EVIL and "script" not in dict(drawn.tags)


@pytest.mark.parametrize("file", [store.CLASSES, store.CHANGED, store.ATTENTION, store.HISTOGRAMS, sensitivity.FILE,
                                  store.TOP, store.BASELINES, store.STUDENT_SUMMARY, store.RUN, store.BEST])  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"{}", store.arrow_parquet(pa.table({"x": [1]}))])
def test_a_file_that_is_damaged_is_told_in_a_sentence(whole, file, content, capsys):
    (whole / file).write_bytes(content)
    assert report.main([str(whole), "--html", str(whole / "x.html")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {whole} holds no run that can be shown (") and said.out == ""
    assert not (whole / "x.html").exists()


# -- the command


def test_the_command_writes_one_page(whole, tmp_path, capsys):
    assert report.main([str(whole), "--html", str(tmp_path / "one.html")]) == 0
    assert capsys.readouterr().out == f"page in {tmp_path / 'one.html'}\n"
    assert "<title>r - tapsearch</title>" in (tmp_path / "one.html").read_text()
    assert report.main(["--html", str(tmp_path / "two.html"), str(whole), str(OLDER)]) == 0
    assert "<title>2 runs - tapsearch</title>" in (tmp_path / "two.html").read_text()


def test_a_run_s_folder_gets_its_page(whole):
    page.write(Folder(whole))
    assert "<h1>r</h1>" in (whole / page.FILE).read_text()


def test_a_folder_that_cannot_be_written_is_told(whole, monkeypatch):
    def full(self, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(InputError, match="report.html cannot be written .* the results are whole; make room, then"):
        page.write(Folder(whole))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RUN", "--html"], "--html must name the file to write"),
        (["--html", "--live", "RUN"], "--html and --live do not go together"),
        (["--html", "x.html", "--beside", "RUN"], "--html and --beside do not go together"),
        (["--html", "x.html"], "name the folders of one or more runs"),
        (["RUN", "--html", "/none/x.html"], "--html /none/x.html cannot be written"),
        (["RUN", "--html", "/"], "--html / cannot be written"),
        (["/none", "--html", "x.html"], "/none holds no run that can be shown"),
        (["--live", "RUN", "RUN"], "--live serves one run, and 2 are named"),
        (["--live", "/none"], "/none holds no run that can be shown"),
    ],
)
def test_what_cannot_be_done_is_told(whole, capsys, arguments, told):
    assert report.main([str(whole) if argument == "RUN" else argument for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and told in said.err and said.err.count("\n") == 1 and said.out == ""


def test_sections_stand_in_the_order_in_which_a_reader_wants_them():
    names = [section.__name__ for section, _ in sections.ORDER]
    assert names == ["cost", "search", "overfitting", "front", "codes", "sensitivity", "best", "changes", "attention",
                     "approximations", "adaptation", "provenance"]  # fmt: skip


def test_a_table_knows_which_columns_hold_no_numbers():
    from search.results.page.parts import Table

    assert Table("t", ("a", "b", "c"), [("x", "1", ""), ("y", "-2", "")]).texts == {0, 2}


def test_an_empty_frame_has_no_best():
    run = reading.Run(Folder("r"), ABOUT, pd.DataFrame(), None, {}, (), None, {})
    assert sections.best(run) is None and sections.search(run) is None and not run.ended
