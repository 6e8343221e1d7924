"""Runs' folders that somebody damaged, edited, or filled with another run's files: each is refused with one sentence.

`report.main` and what `--resume` reads first are asked; neither may change a file.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from approx_env.errors import InputError
from approx_env.int8 import energy
from search import config, job
from search.results import inspection, lease, ledger, report, store
from search.results.folder import Folder, as_json

LAYERS, TMAX, EPISODES = ("conv1", "fire2"), (35, 255), 4
# A run of PPO on another teacher, from before runs had baselines and a cost model.
OLDER = Path(__file__).parents[1] / "golden" / "older-run"
INFO = ledger.RunInfo("r", "squeezenet", "digits", LAYERS, TMAX, 32)

COSTS = {"zero_natural": 0.25, "covered": 0.5, "relative_energy_sites": 0.375, "relative_energy": 0.6875,
         "mac_exact_all": 0.625}  # fmt: skip


def row(episode: int, seed: int = 0, info: ledger.RunInfo = INFO) -> dict:
    outcome = {name: 0.25 for name in ("accuracy", "soft_accuracy", "drop_points", "kd", "at")}
    return ledger.complete(info, {
        "trial": f"ppo-seed{seed}", "algorithm": "ppo", "seed": seed, "episode": episode,
        "episode_id": f"ppo-seed{seed}-{episode}", "time": 1_700_000_000_000, "codes": [[1, 2, 3, 4 + episode]] * 2,
        "outcome": outcome | COSTS | {"return": episode / 10, "shares": [0.25] * 4, "layer_shares": [[0.25] * 4] * 2},
    })  # fmt: skip


ROWS = [row(episode, seed) for seed in (0, 1) for episode in range(EPISODES)]
SETTINGS = config.Settings(
    model="squeezenet", algorithm="ppo", episodes=EPISODES, seeds=(0, 1), search_images=32
)
ABOUT = {
    "run": "r",
    "schema_version": store.SCHEMA_VERSION,
    "arguments": json.loads(json.dumps(asdict(SETTINGS))),
    "dataset": "digits",
    "splits": {"search": 256},
    "teacher": {"sha256": "0"},
    "layers": {layer: {"tmax": tmax} for layer, tmax in zip(LAYERS, TMAX, strict=True)},
    "versions": {"torch": "2.15.0"},
    "cost": asdict(energy.read("horowitz-45nm")) | {"scope": energy.SCOPE},
}
COMPARED = [
    dict.fromkeys(store.baselines_schema(LAYERS).names, 0.5)
    | {"run": "r", "model": "squeezenet", "dataset": "digits", "baseline": name, "energy_table": "Horowitz 45 nm"}
    | {"schema_version": 1, "conv1_limit": 35, "fire2_limit": 255}
    for name in ("chosen", "threshold at t1")
]
SHARES = {"teacher": 0.9, "student": 0.8, "drop_points": 10.0}
BEST = {
    "model": "squeezenet",
    "dataset": "digits",
    "layers": {layer: {f"{name}_code": ROWS[3][f"{layer}_{name}"] for name in store.CODE_FIELDS} for layer in LAYERS},
    "selection": {"trial": "ppo-seed0", "episode_id": "ppo-seed0-3", "search_return": 0.3},
    "metrics": {
        "acc_teacher": 0.9, "acc_student": 0.8, "acc_drop": 10.0, "validation": SHARES, "test": SHARES,
        "float_teacher": {"validation": 0.9, "test": 0.9},
        "cost": {"table": "Horowitz 45 nm", "relative_energy": 0.25},
    },
}  # fmt: skip
STATE = {
    "episodes": torch.tensor(2), "best": torch.zeros(2, dtype=torch.float64), "module.weight": torch.zeros(3),
    "adam.0.step": torch.tensor(1.0),
}  # fmt: skip


def write_baselines(folder: Path, **values) -> None:
    made = [row | values for row in COMPARED]
    (folder / store.BASELINES).write_bytes(store.parquet(made, store.baselines_schema(LAYERS)))


def write_part(folder: Path, rows: list[dict], name: str = "part-1.parquet") -> None:
    (folder / "episodes" / name).write_bytes(store.parquet(rows, store.schema(LAYERS)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "r"
    (folder / "episodes").mkdir(parents=True)
    write_part(folder, ROWS)
    measured = {"validation_accuracy": 0.8, "validation_drop_points": 10.0, "validation_mac_exact_all": 0.625}
    validated = [ROWS[3] | measured]
    (folder / store.TOP).write_bytes(store.parquet(validated, store.validated_schema(LAYERS)))
    write_baselines(folder)
    for name, value in ((store.RUN, ABOUT), (store.BEST, BEST)):
        (folder / name).write_bytes(as_json(value))
    (folder / "ppo-seed0.safetensors").write_bytes(safetensors.torch.save(STATE))
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(whole, tmp_path / "r"))


class Case(NamedTuple):
    """What is done to a run's folder, and which words tell of it (None: it does not matter to that command)."""

    name: str
    damage: Callable[[Path], None]
    report: str | None
    resume: str | None


def file(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


LACKS = object()
NEW = ("objective", "budget_exact", "search_tmax")  # arguments that runs did not have once


def edited(name: str, value: dict, path: str, new) -> Callable[[Path], None]:
    """Puts another value at a place, as 'metrics.acc_drop', of a file of JSON; `LACKS` takes it away."""
    changed = copy.deepcopy(value)
    *way, last = path.split(".")
    place = changed
    for key in way:
        place = place[key]
    if new is LACKS:
        del place[last]
    else:
        place[last] = new
    return file(name, json.dumps(changed).encode())


def part(change: Callable[[list[dict]], list[dict]], name: str = "part-1.parquet") -> Callable[[Path], None]:
    return lambda folder: write_part(folder, change([dict(row) for row in ROWS]), name)


def cells(**values) -> Callable[[Path], None]:
    """Changes cells of one row."""

    def change(rows: list[dict]) -> list[dict]:
        rows[5] |= values
        return rows

    return part(change)


def table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "episodes" / "part-1.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return damage


def foreign(**values) -> Callable[[Path], None]:
    """Copies a part of another run in."""
    return part(lambda rows: [row | values for row in rows], "part-2.parquet")


def state(change: dict) -> Callable[[Path], None]:
    kept = {name: value for name, value in (STATE | change).items() if value is not None}
    return file("ppo-seed0.safetensors", safetensors.torch.save(kept))


def retyped(name: str, kind: pa.DataType) -> Callable[[Path], None]:
    return table(lambda read: read.set_column(read.column_names.index(name), name, read[name].cast(kind)))


def without(folder: Path, names: tuple[str, ...]) -> None:
    """Takes columns away that older runs lack."""
    for path in (folder / "episodes" / "part-1.parquet", folder / store.TOP):
        read = pq.read_table(path)
        pq.write_table(read.drop_columns([name for name in names if name in read.column_names]), path)


def before_layer_forwards(folder: Path) -> None:
    """Makes it a run from before layer-forwards were counted."""
    without(folder, store.FORWARDS)


def before_the_budget(folder: Path) -> None:
    """Makes it a run from before there was a budget of exact multiplications."""
    before_layer_forwards(folder)
    without(folder, store.BUDGET)
    arguments = {name: value for name, value in ABOUT["arguments"].items() if name not in NEW}
    (folder / store.RUN).write_bytes(as_json(ABOUT | {"arguments": arguments}))


def older(folder: Path) -> None:
    """Makes it a run from before there was a cost model."""
    before_the_budget(folder)
    without(folder, store.COSTS)
    about = json.loads((folder / store.RUN).read_text())
    del about["cost"]
    (folder / store.RUN).write_bytes(as_json(about))
    gone(store.BASELINES)(folder)


again = part(lambda rows: rows, "part-2.parquet")
backwards = table(lambda read: read.select(read.column_names[::-1]))
DEEP = b"[" * 200_000 + b"]" * 200_000
GARBAGE = {
    "empty": b"", "blank": b" \n", "no JSON": b"best", "half": b'{"run": "r", ', "a list": b"[]", "null": b"null",
    "a number": b"7", "an empty mapping": b"{}", "no UTF-8": b"\xff\xfe\xfd", "nested": DEEP, "NaN": b"NaN",
    "Parquet": b"PAR1PAR1", "a list in a list": b"[[{}]]",
}  # fmt: skip
NO_RUN, DAMAGED = "holds no run to go on with", "its results are damaged"
NOT_FINISHED, PART, LEFT = "holds no finished run", "episodes/part-1.parquet is damaged", "ppo-seed0.safetensors is"
OTHER = "episodes/part-2.parquet is damaged or of another run"

CASES = [
    *(Case(f"best.json: {what}", file(store.BEST, data), NOT_FINISHED, DAMAGED) for what, data in GARBAGE.items()),
    *(Case(f"run.json: {what}", file(store.RUN, data), NOT_FINISHED, NO_RUN) for what, data in GARBAGE.items()),
    Case("best.json: a folder", as_folder(store.BEST), NOT_FINISHED, DAMAGED),
    Case("run.json: a folder", as_folder(store.RUN), NOT_FINISHED, NO_RUN),
    Case("run.json: gone", gone(store.RUN), NOT_FINISHED, NO_RUN),
    Case("best.json: gone", gone(store.BEST), NOT_FINISHED, None),
    Case("run.json is best.json", file(store.RUN, as_json(BEST)), NOT_FINISHED, NO_RUN),
    Case("best.json is run.json", file(store.BEST, as_json(ABOUT)), NOT_FINISHED, DAMAGED),
    *(
        Case(f"best.json: {path} = {new!r:.20}", edited(store.BEST, BEST, path, new), NOT_FINISHED, DAMAGED)
        for path, new in (
            ("metrics", LACKS), ("metrics", []), ("metrics", None), ("metrics.acc_drop", "ten"),
            ("metrics.acc_drop", float("nan")), ("metrics.acc_teacher", 90), ("metrics.acc_teacher", True),
            ("metrics.validation", 0.9), ("metrics.validation.drop_points", LACKS), ("metrics.float_teacher", LACKS),
            ("metrics.float_teacher.test", None), ("selection", "first"), ("selection.episode_id", 3),
            ("selection.episode_id", "ppo-seed0-99"), ("selection.episode_id", "ppo-seed0-2"), ("model", 5),
            ("model", "alexnet"), ("dataset", "cifar10"), ("layers", {}), ("layers", LACKS), ("layers.conv1", 4),
            ("layers.conv1.t1_code", 4.5), ("layers.conv1.t1_code", 256), ("layers.conv1.t1_code", -1),
            ("layers.conv1.v2_code", 9), ("layers.conv9", {}), ("metrics.cost", 3),
            ("metrics.cost.relative_energy", "much"), ("metrics.cost.table", None),
        )
    ),
    *(
        Case(f"run.json: {path} = {new!r:.20}", edited(store.RUN, ABOUT, path, new), told, NO_RUN)
        for path, new, told in (
            ("run", LACKS, NOT_FINISHED), ("run", 3, NOT_FINISHED), ("run", "a/b", NOT_FINISHED),
            ("run", "", NOT_FINISHED), ("schema_version", 0, NOT_FINISHED), ("schema_version", 99, NOT_FINISHED),
            ("schema_version", True, NOT_FINISHED), ("schema_version", "1", NOT_FINISHED),
            ("arguments", None, NOT_FINISHED), ("arguments", [], NOT_FINISHED), ("arguments.seeds", 0, NOT_FINISHED),
            ("arguments.seeds", ["0"], NOT_FINISHED), ("arguments.seeds", [], NOT_FINISHED),
            ("arguments.episodes", "320", NOT_FINISHED), ("arguments.episodes", None, NOT_FINISHED),
            ("arguments.algorithm", 1, NOT_FINISHED), ("arguments.search_images", -1, NOT_FINISHED),
            ("arguments.rungs", "32,64", NOT_FINISHED), ("arguments.unknown", 1, None),
            ("arguments.lr", "fast", None), ("arguments.lr", -1, None), ("arguments.engine", "warp", None),
            ("arguments.top", 0, None), ("arguments.device", 5, None), ("arguments.kd_weight", True, None),
            ("dataset", None, NOT_FINISHED), ("teacher", "t", NOT_FINISHED), ("layers", [], NOT_FINISHED),
            ("layers.conv1", {}, NOT_FINISHED), ("layers.conv1.tmax", "35", NOT_FINISHED),
            ("layers.conv1.tmax", 256, NOT_FINISHED), ("splits", 3, NOT_FINISHED), ("versions", [], NOT_FINISHED),
            ("resumed", {}, NOT_FINISHED), ("resumed", [1], NOT_FINISHED),
        )
    ),
    Case("a run of another name", edited(store.RUN, ABOUT, "run", "s"), PART, PART),
    Case("a run of another tmax", edited(store.RUN, ABOUT, "layers.conv1.tmax", 36), PART, PART),
    *(
        Case(f"a part: {what}", file("episodes/part-1.parquet", data), PART, PART)
        for what, data in (("empty", b""), ("garbage", b"PAR1 is not enough"), ("magic", b"PAR1PAR1PAR1"))
    ),
    Case("a part: cut off", lambda folder: _cut(folder / "episodes" / "part-1.parquet"), PART, PART),
    Case("a part: one column", table(lambda read: read.select(["episode_id"])), PART, PART),
    Case("a part: no seed", table(lambda read: read.drop_columns(["seed"])), PART, PART),
    Case("a part: a column more", table(lambda read: read.append_column("x", read["seed"])), PART, PART),
    Case("a part: a column twice", table(lambda read: read.append_column("seed", read["seed"])), PART, PART),
    Case("a part: no columns", table(lambda read: read.select([])), PART, PART),
    Case("a part: text codes", retyped("conv1_t1", pa.string()), PART, PART),
    Case("a part: wide codes", retyped("conv1_t1", pa.int64()), PART, PART),
    Case("a part: text return", retyped("return", pa.string()), PART, PART),
    *(
        Case(f"a part: {values}", cells(**values), PART, PART)
        for values in (
            {"run": "s"}, {"trial": "ppo-seed7"}, {"trial": None}, {"seed": 7}, {"algorithm": "random"},
            {"episode": 99}, {"episode": -1}, {"episode_id": "x"}, {"episode_id": None}, {"model": "alexnet"},
            {"dataset": "cifar10"}, {"search_images": 64}, {"schema_version": 2}, {"return": float("nan")},
            {"return": float("inf")}, {"return": None}, {"conv1_t1": 9}, {"conv1_v2": 36}, {"conv1_t1": -1},
            {"conv1_tmax": 34}, {"fire2_mac_v1": None},
        )
    ),
    Case("another run's part", foreign(run="s"), OTHER, OTHER),
    Case("another search's part", foreign(algorithm="random", trial="random-seed0"), OTHER, OTHER),
    Case("a part of other seeds", foreign(seed=2, trial="ppo-seed2"), OTHER, OTHER),
    Case("a state: garbage", file("ppo-seed0.safetensors", b"state"), LEFT, LEFT),
    Case("a state: empty", file("ppo-seed0.safetensors", b""), LEFT, LEFT),
    Case("a state: without its episodes", state({"episodes": None}), LEFT, LEFT),
    Case("a state: too many episodes", state({"episodes": torch.tensor(5)}), LEFT, LEFT),
    Case("a state: a vector of episodes", state({"episodes": torch.tensor([1, 2])}), LEFT, LEFT),
    Case("a state: a foreign tensor", state({"conv1.weight": torch.zeros(2)}), LEFT, LEFT),
    Case("a state: without its best", state({"best": None}), LEFT, LEFT),
    Case("a state: a number as its best", state({"best": torch.tensor(0.5)}), LEFT, LEFT),
    Case("a state: NaN", state({"module.weight": torch.tensor([float("nan")])}), LEFT, LEFT),
    Case("top.parquet: garbage", file(store.TOP, b"PAR1"), None, DAMAGED),
    Case("top.parquet: gone", gone(store.TOP), None, DAMAGED),
    Case("top.parquet: not validated", file(store.TOP, store.parquet(ROWS, store.schema(LAYERS))), None, DAMAGED),
    Case("top.parquet: of an older run", lambda folder: (older(folder), cells()(folder)), None, None),
    *(
        Case(f"run.json: cost {said!r}", edited(store.RUN, ABOUT, "cost", said), NOT_FINISHED, NO_RUN)
        for said in (None, [], {}, ABOUT["cost"] | {"exact_pj": "much"})
    ),
    Case("baselines.parquet: garbage", file(store.BASELINES, b"PAR1"), None, DAMAGED),
    Case("baselines.parquet: gone", gone(store.BASELINES), None, DAMAGED),
    Case("baselines.parquet: other columns", file(store.BASELINES, store.parquet(ROWS, store.schema(LAYERS))), None,
         DAMAGED),
    *(
        Case(f"baselines.parquet: {values}", lambda folder, values=values: write_baselines(folder, **values), None,
             DAMAGED)
        for values in ({"run": "s"}, {"model": "alexnet"}, {"dataset": "cifar10"}, {"baseline": None},
                       {"relative_energy": float("nan")}, {"fire2_limit": None})
    ),
    Case("a part: some of the costs", table(lambda read: read.drop_columns(["relative_energy"])), PART, PART),
    Case("a part: without the share of all that is exact", table(lambda read: read.drop_columns(["mac_exact_all"])),
         PART, PART),
    Case("no rows", gone("episodes/part-1.parquet"), NOT_FINISHED, DAMAGED),
    Case("no episodes", lambda folder: shutil.rmtree(folder / "episodes"), NOT_FINISHED, DAMAGED),
    # What does no harm.
    Case("nothing", lambda folder: None, None, None),
    Case("an older run", older, None, None),
    Case("a run from before layer-forwards", before_layer_forwards, None, None),
    Case("a run from before layer-forwards that was resumed",
         lambda folder: (before_layer_forwards(folder), again(folder)), None, None),
    Case("a run from before the budget", before_the_budget, None, None),
    Case("a run from before the budget that was resumed", lambda folder: (before_the_budget(folder), again(folder)),
         None, None),
    Case("an older run that was resumed", lambda folder: (older(folder), again(folder)), None, None),
    Case("an option that the run did not have", edited(store.RUN, ABOUT, "arguments.top", LACKS), None, None),
    Case("an option that is nothing", edited(store.RUN, ABOUT, "arguments.top", None), None, NO_RUN),
    Case("the same part twice", again, None, None),
    Case("a part in another order", part(lambda rows: rows[::-1]), None, None),
    Case("columns in another order", backwards, None, None),
    Case("parts with columns in different orders", lambda folder: (backwards(folder), again(folder)), None, None),
    Case("an empty part", part(lambda rows: [], "part-2.parquet"), None, None),
    Case("a temporary file", file("episodes/.part-2.parquet.0123.tmp", b"PAR1"), None, None),
    Case("a file of a person", file("notes.txt", b"\xff"), None, None),
    Case("a folder of a person", as_folder("episodes/part-3.parquet"), None, None),
    Case("a damaged lease", file(lease.FILE, b"{"), None, None),  # told when the lease is taken
]  # fmt: skip


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_many_cases():
    assert len(CASES) >= 120 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_folder_is_refused_in_a_sentence_or_does_no_harm(folder, case, capsys):
    case.damage(folder)
    before = contents(folder)
    assert report.main([str(folder)]) == (2 if case.report else 0)
    said = capsys.readouterr()
    if case.report:
        (line,) = said.err.splitlines()
        assert line.startswith("error: ") and case.report in line and not said.out
    else:
        assert said.err == "" and "| squeezenet | 90.0% / 90.0% | ppo | 4 x 2 | 0.3000 (0.3000) |" in said.out
    place = Folder(folder)
    if case.resume:
        with pytest.raises(InputError) as caught:
            job._finished(place, job._go_on(place, config.Settings(resume="r"))[0])
        (problem,) = caught.value.problems
        assert problem.startswith("--resume: ") and case.resume in problem and "\n" not in problem
    else:
        about, settings = job._go_on(place, config.Settings(resume="r"))
        assert job._finished(place, about) == (folder / store.BEST).exists()
        assert (settings.episodes, settings.seeds, settings.resume) == (EPISODES, (0, 1), "r")
    assert contents(folder) == before


def test_every_fault_of_a_folder_is_told_at_once(folder, capsys):
    for damage in (foreign(run="s"), file("ppo-seed0.safetensors", b""), cells(episode_id="x")):
        damage(folder)
    assert report.main([str(folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_an_empty_folder_and_none_are_no_runs(tmp_path, capsys):
    for place in (tmp_path, tmp_path / "none", Path(__file__)):
        assert report.main([str(place)]) == 2
        assert NOT_FINISHED in capsys.readouterr().err
        with pytest.raises(InputError, match=NO_RUN):
            job._go_on(Folder(place), config.Settings(resume="r"))


def test_rows_of_every_rung_are_the_runs(folder):
    about = copy.deepcopy(ABOUT)
    about["arguments"] |= {"rungs": [32, 64]}
    promoted = [row(3) | {"episode_id": "ppo-seed0-3@64", "search_images": 64}]
    columns = store.schema(LAYERS)
    inspection.check_rows(pa.Table.from_pylist(ROWS + promoted, schema=columns), about)
    promoted[0]["episode_id"] = "ppo-seed0-3"
    with pytest.raises(ValueError, match="episode_id is 'ppo-seed0-3', and ppo-seed0-3@64 is right"):
        inspection.check_rows(pa.Table.from_pylist(promoted, schema=columns), about)


def test_options_that_older_runs_name_otherwise(tmp_path):
    about = ABOUT | {"arguments": dict(ABOUT["arguments"])}
    about["arguments"]["layers"] = about["arguments"].pop("model")
    about["arguments"]["batch_size"] = about["arguments"].pop("calib_batch_size")
    (tmp_path / store.RUN).write_bytes(as_json(about))
    assert inspection.run_json(Folder(tmp_path))["arguments"] == ABOUT["arguments"]


def test_a_student_in_the_folder_is_no_search_state(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "r")
    (folder / store.STUDENT_ARRAYS).write_bytes(safetensors.torch.save({"conv/weight": torch.zeros(2)}))
    assert inspection.faults(Folder(folder), inspection.run_json(Folder(folder))) == {}


def test_a_searched_tmax_may_be_any_that_its_codes_are_valid_under():
    about = ABOUT | {"arguments": ABOUT["arguments"] | {"search_tmax": True}}
    columns = store.schema(LAYERS)

    def check(**cells) -> None:
        inspection.check_rows(pa.Table.from_pylist([ROWS[0] | cells], schema=columns), about)

    check(conv1_tmax=4)
    check(conv1_v2=200, conv1_tmax=255)
    for cells in ({"conv1_tmax": 3}, {"conv1_v2": 36}, {"fire2_tmax": 256}):
        with pytest.raises(ValueError, match="do not satisfy 1 <= t1 < v1 < t2 < v2 <= tmax <= 255"):
            check(**cells)


def test_a_front_is_the_run_s(tmp_path):
    folder, about = Folder(tmp_path), ABOUT | {"arguments": ABOUT["arguments"] | {"objective": "pareto"}}
    columns = store.pareto_schema(LAYERS)
    point = dict.fromkeys(columns.names, 0.5) | ROWS[0] | {"chosen": True, "energy_table": "Horowitz 45 nm"}
    inspection.check_front(folder, ABOUT)  # another objective has none
    with pytest.raises(ValueError, match=r"^pareto\.parquet: "):
        inspection.check_front(folder, about)

    def check(**cells) -> None:
        made = {name: (point | cells)[name] for name in columns.names}
        folder.write(store.PARETO, store.parquet([made], columns))
        inspection.check_front(folder, about)

    check()
    for cells in ({"run": "s"}, {"chosen": None}, {"conv1_tmax": None}, {"return": float("nan")}):
        with pytest.raises(ValueError, match=r"^pareto\.parquet: "):
            check(**cells)
    folder.write(store.PARETO, b"PAR1")
    with pytest.raises(ValueError, match=r"^pareto\.parquet: "):
        inspection.check_front(folder, about)
