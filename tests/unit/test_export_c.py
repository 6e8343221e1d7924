"""The C program: no compiler objects, every bit is ours, and what it multiplies is what we say it does."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from approx_env import data
from approx_env.export.deployment import Deployment
from approx_env.export.formats import c
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.sites import with_sites
from approx_env.scoring import calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from approx_env.teachers import store
from tests import exports

SHARED = "-DNETWORK_SHARED"
COMPACT = "squeezenet_compact"


def shipped(model: str, digits: data.Dataset, sites: str = "standard") -> Deployment:
    """A shipped teacher with golden images, and the whole test split."""
    network = with_sites(store.read(store.path_of(model, "digits")).network, sites)
    configuration = exports.codes(network)
    split = exports.split_of(network, configuration, *digits.load("test"))
    return Deployment(network, configuration, *digits.load("validation", 16), split)


@pytest.fixture(scope="module", params=[COMPACT, "resnet8"])
def compact(request, digits, tmp_path_factory) -> tuple[Deployment, Path]:
    made = shipped(request.param, digits, "all")
    return made, exports.written("c", made, tmp_path_factory.mktemp("c") / "compact")


@pytest.mark.parametrize("mode", [(), (SHARED,)])
def test_a_small_network(small, mode, tmp_path):
    """Strides, padding, windows that the border cuts, a flattening and linear layers."""
    made = exports.deployment(small.network, small.images[:9])
    folder = exports.written("c", made, tmp_path / "c")
    exports.check_trace(exports.compiled(folder, *mode), folder)


@pytest.mark.parametrize("mode", [(), (SHARED,)])
def test_additions_concatenations_and_means(mode, tmp_path):
    folder = exports.written("c", exports.joined_deployment(), tmp_path / "c")
    exports.check_trace(exports.compiled(folder, *mode), folder)


@pytest.mark.parametrize("mode", [(), (SHARED,)])
def test_a_network_by_hand(by_hand, mode, tmp_path):
    """p0 = 20, p1 = 4 on all places: codes (20 - 4 + 4) / 2 = 10 and (40 + 12 - 8) / 4 = 11."""
    images = np.empty((1, 2, 2, 2), np.uint8)
    images[:, 0], images[:, 1] = 148, 132
    made = exports.deployment(by_hand, images, {"first": ((1, 3, 10, 12), 12)})
    folder = exports.written("c", made, tmp_path / "c")
    told = exports.check_trace(exports.compiled(folder, *mode), folder)
    found = np.frombuffer((folder / "golden.trace").read_bytes()[-16:], "<i8")
    assert found.tolist() == [(3 + 2 * 12) << 15, (-3 + 16) << 14]  # TAP makes 3 and 12 of 10 and 11
    if mode:
        assert exports.counts(told) == {"02_first": [0, 2, 2, 0], "others": [0, 0, 0, 2 * 2 * 4]}
        assert told.splitlines()[-1] == "multiplications executed: 20 of 20"  # 16, and two for each logit


def test_whole_test_split_bit_for_bit(compact):
    made, folder = compact
    exports.check_trace(exports.compiled(folder), folder)
    program = exports.compiled(folder, sanitised=False)
    exports.check_accuracy(exports.run(program, folder / "test.images", folder / "test.labels"), made.split)


def test_what_is_multiplied_is_what_our_shares_say(compact):
    made, folder = compact
    program = exports.compiled(folder, SHARED, sanitised=False)
    check_counts(made, exports.run(program, folder / "test.images", folder / "test.labels"))


def check_counts(made: Deployment, told: str) -> None:
    """Same bits as without sharing; products as the evaluator counts them."""
    exports.check_accuracy(told, made.split)
    limits = {name: tmax for name, (_, tmax) in made.configuration.items()}
    problem = Problem(made.network, calibration.uncounted(limits), made.split.images, made.split.labels, Reward())
    scorer = Evaluator(problem)
    score = scorer.evaluate([made.configuration[name][0] for name in scorer.layers])
    found = exports.counts(told)
    *layers, others = found.values()
    shares = dict(zip(scorer.layers, score.layer_shares.tolist(), strict=True))
    for name, four in zip(made.network.layers, layers, strict=True):
        assert cost.shares(np.array(four)).tolist() == shares[name]
    whole = np.sum(layers, 0)
    assert cost.shares(whole).tolist() == score.shares.tolist()
    images = len(made.split.labels)
    assert whole.sum() + sum(others) == cost.total(made.network) * images
    executed, products = map(int, re.findall(r"\d+", told.splitlines()[-1]))
    assert products == cost.total(made.network) * images
    assert executed == whole[3] + others[3] + 2 * images * _outputs(made)


def _outputs(made: Deployment) -> int:
    """Sums an image in which v1 and v2 are shared."""
    readers = {reader.tensor for reader in cost.readers(made.network)}
    return sum(int(np.prod(made.network.shapes[node.name])) for node in made.network.nodes
               if node.inputs[0] in readers and hasattr(node, "weight"))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("model", ["squeezenet", "alexnet"])
def test_whole_test_split_of_the_large_teachers(model, compiler, digits, tmp_path):
    """Undefined behaviour is looked for on all images with gcc, with clang on the golden ones."""
    made = shipped(model, digits)
    folder = exports.written("c", made, tmp_path / "c")
    for mode in ((), (SHARED,)):
        program = exports.compiled(folder, *mode, compiler=compiler)
        exports.check_trace(program, folder)
        if compiler == "clang":
            program = exports.compiled(folder, *mode, compiler=compiler, sanitised=False)
        told = exports.run(program, folder / "test.images", folder / "test.labels")
        exports.check_accuracy(told, made.split)
    check_counts(made, told)


@pytest.mark.slow
def test_clang_objects_to_nothing_either(compact):
    _, folder = compact
    for mode in ((), (SHARED,)):
        exports.check_trace(exports.compiled(folder, *mode, compiler="clang"), folder)


def test_the_sizes_that_are_reported_are_the_programs(compact, tmp_path):
    made, folder = compact
    told = c.write(made, folder)
    exports.run(exports.tool("gcc"), "-std=c99", "-Os", "-c", folder / "network.c", "-o", tmp_path / "n.o")
    lines = [line.split() for line in exports.run(exports.tool("nm"), "-S", tmp_path / "n.o").splitlines()]
    sizes = {words[3]: int(words[1], 16) for words in lines if len(words) == 4}

    def total(*prefixes: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefixes))

    assert told["weights_bytes"] == total("weight_")
    assert told["biases_and_multipliers_bytes"] == total("bias_", "multiplier_")
    assert told["tables_bytes"] == total("table_") == 256 * len(made.network.layers)
    assert told["buffers_bytes"] == sum(sizes[name] for name in ("codes", "values", "sums"))


def test_places_are_used_again_and_never_while_something_lives(networks):
    network = networks["squeezenet"]
    plan, whole = c.Plan(network), sum(int(np.prod(network.shapes[name])) for name in network.scales)
    assert plan.codes < whole / 4
    check_plan(network, plan)


def check_plan(network: Network, plan: c.Plan) -> None:
    """No node overwrites what it or a later one reads, but for tables in place."""
    last = {name: place for place, node in enumerate(network.nodes) for name in node.inputs}
    spans = {name: (plan.places[name], plan.places[name] + int(np.prod(network.shapes[name]))) for name in plan.places}
    for place, node in enumerate(network.nodes):
        begin, end = spans[node.name]
        for name, until in last.items():
            born = -1 if name == "input" else network.nodes.index(network.by_name[name])
            same_buffer = (name in network.scales) == (node.name in network.scales)
            if name != node.name and same_buffer and born < place <= until:
                low, high = spans[name]
                in_place = name in node.inputs and until == place and type(node).__name__ == "Site" and begin <= low
                assert end <= low or high <= begin or in_place, (node.name, name)


def test_main_says_what_it_cannot_read(small, tmp_path):
    folder = exports.written("c", exports.deployment(small.network, small.images[:3]), tmp_path / "c")
    program = exports.compiled(folder)
    (tmp_path / "short").write_bytes((folder / "golden.images").read_bytes()[:-1])
    (tmp_path / "long").write_bytes((folder / "golden.images").read_bytes() + b"x")
    (tmp_path / "none").touch()
    labels = folder / "golden.labels"
    for arguments, said in (
        ([], "usage: "), ([tmp_path / "nowhere", labels], "usage: "),
        ([tmp_path / "short", labels], "has fewer images"),
        ([tmp_path / "long", labels], "must hold an image for each label"),
        ([tmp_path / "none", tmp_path / "none"], "must hold an image for each label"),
        ([folder / "golden.images", labels, tmp_path / "no" / "where"], "usage: "),
        ([folder / "golden.images", labels, "/dev/full"], "TRACE"),
    ):  # fmt: skip
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and not done.stdout, said
