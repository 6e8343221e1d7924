"""Who may do what: without the token a client, a node and the jobs API are refused; results run no code."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from approx_env.teachers import store
from search import run
from search.results import report
from tests.command import LONGEST_SECONDS, PPO_ALEXNET, ROOT, Command
from tests.command import run as finished

RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]
HEAD, DASHBOARD = "127.0.0.1:6391", "127.0.0.1:8291"
OPEN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "20"}


@pytest.fixture(scope="module")
def home():
    """The home of a person with the right token."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("a" * 64)
    (folder / ".ray" / "auth_token").chmod(0o600)
    yield folder
    shutil.rmtree(folder)


def environment(home: Path, token: str | None = "right") -> dict[str, str]:
    """Of a person with the right token, a wrong one or none."""
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / ".ray" / "auth_token")}
    if token == "wrong":
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}
    if token is None:
        own = {"RAY_AUTH_MODE": "disabled"}
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | OPEN | own


@pytest.fixture(scope="module")
def head(home):
    """A head on loopback that wants the token."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    host, port = HEAD.split(":")
    start = ["start", "--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=2", f"--temp-dir={folder}",
             "--object-store-memory=100000000", "--include-dashboard=true", f"--dashboard-host={host}",
             f"--dashboard-port={DASHBOARD.split(':')[1]}", "--disable-usage-stats", "--block"]  # fmt: skip
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [*RAY, *start], env=environment(home), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + LONGEST_SECONDS
    while status("right token " + "a" * 64) != 200:
        assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.5)
    yield process
    process.terminate()
    process.wait(LONGEST_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def status(token: str | None) -> int | None:
    """What the jobs API answers; None if nothing does."""
    headers = {"Authorization": f"Bearer {token.split()[-1]}"} if token else {}
    request = urllib.request.Request(f"http://{DASHBOARD}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize(("token", "answer"), [(None, 401), ("b" * 64, 403), ("a" * 64, 200)])
def test_the_jobs_api(head, token, answer):
    assert status(token) == answer


CLIENT = f"import ray; ray.init(address='{HEAD}', log_to_driver=False); print('in', ray.cluster_resources()['CPU'])"


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "wrong", "right"])
def test_a_client(head, home, token):
    ended = subprocess.run([sys.executable, "-c", CLIENT], env=environment(home, token), capture_output=True, text=True)
    assert ("in 2.0" in ended.stdout) == (ended.returncode == 0) == (token == "right"), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "wrong", "right"])
def test_a_node(head, home, token, tmp_path):
    """It would join, and go again, in network and process spaces of its own hosts; here it is one more raylet."""
    start = ["start", f"--address={HEAD}", "--node-ip-address=127.0.0.1", "--num-cpus=1",
             "--object-store-memory=100000000", "--block"]  # fmt: skip
    process = subprocess.Popen([*RAY, *start], env=environment(home, token), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        if token == "right":
            count = "import ray; ray.init(address='%s', log_to_driver=False); print(len(ray.nodes()))" % HEAD  # noqa: UP031
            end = time.monotonic() + LONGEST_SECONDS
            while (
                "2"
                not in subprocess.run(
                    [sys.executable, "-c", count], env=environment(home), capture_output=True, text=True
                ).stdout
            ):
                assert process.poll() is None and time.monotonic() < end
        else:
            assert process.wait(LONGEST_SECONDS) != 0
    finally:
        process.terminate()
        process.wait(LONGEST_SECONDS)


@pytest.mark.slow
def test_a_search_without_the_token(head, home):
    """With it one runs in test_hosts."""
    arguments = "--layers squeezenet_compact --algorithm quintile --search-images 16 --top 1 --num-env-runners 1"
    refused = environment(home, None) | {"TMPDIR": "/tmp"}
    ended = Command(*arguments.split(), "--address", HEAD, environment=refused).finish()
    assert ended.status == 2, ended.errors
    assert f"--address {HEAD}" in ended.errors and "Traceback" not in ended.errors
    assert not ended.folder.exists()


# -- what comes from strangers


class Attack:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self._mark}",)


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "code-ran"


REMADE = (  # when a run begins or ends, whatever was there
    "best.json", "top.parquet", "baselines.parquet", "histograms.parquet", "classes.parquet", "changed.parquet",
    "attention.parquet", "report.html",
)  # fmt: skip


def test_a_results_folder_from_a_stranger_runs_no_code(tmp_path, mark, capsys):
    folder, attack = finished(f"{PPO_ALEXNET}2").folder, pickle.dumps(Attack(mark))
    written = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    for name in written:
        for gone in ("best.json", name):
            whole = tmp_path / "whole"
            shutil.copytree(folder, whole)
            (whole / gone).unlink(missing_ok=True)
            (whole / name).write_bytes(attack)
            (whole / "tune").mkdir()
            (whole / "tune" / "tuner.pkl").write_bytes(attack)
            if gone == "best.json" and name.name not in REMADE:
                assert run.main(["--resume", "whole", "--results", str(tmp_path)]) == 2  # named as damaged
            report.main([str(whole)])
            shutil.rmtree(whole)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_teacher_from_a_stranger_runs_no_code(tmp_path, mark, capsys, suffix):
    shipped = store.path_of("squeezenet_compact", "digits")
    for path in (shipped, shipped.with_suffix(".safetensors")):
        shutil.copy(path, tmp_path)
    (tmp_path / shipped.name).with_suffix(suffix).write_bytes(pickle.dumps(Attack(mark)))
    arguments = ["--layers", "squeezenet_compact", "--teacher", str(tmp_path / shipped.name)]
    assert run.main([*arguments, "--results", str(tmp_path / "results")]) == 2
    assert not mark.exists()


def test_no_product_code_unpickles():
    """Ray's own pickles travel between the processes of one cluster, behind its token; none comes from a file."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("approx_env", "search", "cluster")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(
            r"import.*pickle|pickle.*import|pickle\w*\.loads?\(|read_pickle|allow_pickle|joblib|dill|shelve", line
        )
        or (re.search(r"(?<!safetensors\.)torch\.load\(", line) and "weights_only=True" not in line)
    ]
    assert found == ["search/workers/session.py: return ray.get(ray.cloudpickle.loads(shared)[place])"]
