import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from approx_env import data
from approx_env.engines.vector.engine import VectorEngine
from approx_env.errors import InputError
from approx_env.int8 import quantize
from approx_env.int8.nodes import (
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    ScaledAddition,
    Site,
    weight_pairs,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), np.uint8)


def chain(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def quantized(module: nn.Module, images=IMAGES, layers=None):
    layers = {"a": "a"} if layers is None else layers
    return quantize.quantize(module, images, model="m", classes=("0", "1"), layers=layers, attention=())


def refusal(module: nn.Module, layers=None) -> str:
    with pytest.raises(InputError) as caught:
        quantized(module, layers=layers)
    return str(caught.value)


# -- weights


def test_weight_pairs_by_hand():
    weight = np.array([[3, 4, -5], [-3, -4, 5], [3, -4, -6], [1, 0, 0]])[:, :, None, None]
    # (3 + 4, 0), (3 + 4, 5), pairs of two signs do not add up, an odd last channel stands alone
    assert weight_pairs(weight).tolist() == [7, 7, 6, 1]


def test_weight_pairs_take_the_worst_position_and_do_not_wrap():
    weight = np.array([[[1, 127], [2, 127]]], np.int8)
    assert weight_pairs(weight).tolist() == [254]
    assert weight_pairs(np.array([[-128, -128]], np.int8)).tolist() == [256]


def test_quantize_weight_by_hand():
    weight = np.array([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0], [2.0, 2.0, 0.0]])
    codes, multiples = quantize.quantize_weight(weight, 1 / 127 / 1000)
    assert codes.dtype == np.int8
    assert multiples.dtype == np.int32
    # 127 to the largest weight; 63.5 rounds to the even 64, and a pair of them is 128
    assert codes.tolist() == [[127, -64, 32], [0, 0, 0], [64, 64, 0]]
    assert multiples.tolist() == [1000, 1, 4000]


def test_scales_of_weights_are_multiples_of_the_step():
    codes, multiples = quantize.quantize_weight(np.array([[1.0, -0.5, 0.25]]), 0.005)
    # 1 / 127 / 0.005 = 1.57..: the scale is two steps, and 1.0 is a hundred of them.
    assert (codes.tolist(), multiples.tolist()) == ([[100, -50, 25]], [2])


# -- activations


def test_mse_scale_of_even_codes_is_their_own():
    assert quantize.mse_scale(np.repeat(np.arange(256), 20) * 0.5) == pytest.approx(0.5, rel=0.01)


def test_mse_scale_trades_an_outlier_against_resolution():
    sample = np.concatenate([np.random.default_rng(0).random(100_000), [4.0]])
    # A clip at c costs 100,000 (c / 255)^2 / 12 of rounding and (4 - c)^2 of clipping.
    best = 4 / (1 + 100_000 / 12 / 255**2)
    assert quantize.mse_scale(sample) == pytest.approx(best / 255, rel=0.02)


def test_mse_scale_of_nothing_but_zeros():
    assert quantize.mse_scale(np.zeros(10)) == 1.0


# -- folding


def test_batch_norm_folding_by_hand():
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    with torch.no_grad():
        conv.weight.fill_(2.0)
        conv.bias.fill_(1.0)
        norm.weight.fill_(3.0)
        norm.bias.fill_(7.0)
        norm.running_mean.fill_(5.0)
        norm.running_var.fill_(4.0)
    module = chain(c=conv, n=norm, r=nn.ReLU(), a=nn.Identity(), last=nn.Conv2d(1, 2, 1))
    network = quantized(module, IMAGES[:, :1])
    node = network.by_name["c"]
    # 3 ((2 x + 1) - 5) / 2 + 7 = 3 x + 1
    assert node.weight.reshape(-1).tolist() == [127]
    (scale,) = network.weight_scale(node)
    assert node.weight.item() * scale == pytest.approx(3.0, abs=scale / 2)
    unit = data.PIXEL_SCALE * scale
    assert node.bias[0] == round(1 / unit)
    assert node.relu


def test_nodes_of_a_small_network(small):
    kinds = [(node.name, type(node), node.inputs) for node in small.network.nodes]
    assert kinds == [
        ("one.0", Convolution, ("input",)), ("one", Site, ("one.0",)),
        ("two.0", Convolution, ("one",)), ("two", Site, ("two.0",)),
        ("pool", MaxPool, ("two",)), ("flatten", Flatten, ("pool",)),
        ("three.1", Linear, ("flatten",)), ("three", Site, ("three.1",)),
        ("last", Linear, ("three",)),
    ]  # fmt: skip
    nodes = small.network.by_name
    assert (nodes["one.0"].stride, nodes["one.0"].padding) == (2, 1)
    assert (nodes["pool"].kernel, nodes["pool"].stride, nodes["pool"].ceil) == (3, 2, True)
    assert nodes["last"].logits
    assert not nodes["last"].relu
    assert small.network.input_shape == (3, 10, 10)
    assert (small.network.input_scale, small.network.input_zero_point) == (1 / 64, 128)


def test_quantised_outputs_stay_close_to_float(small):
    with torch.inference_mode():
        exact = small.module(data.normalise(small.images))
    approximate = VectorEngine(small.network).forward(small.images)
    assert (approximate - exact).abs().max() < 0.03 * exact.abs().max()


class Functional(nn.Module):
    """Functions and methods in place of modules, and a 1x1 and a 3x3 branch that are concatenated."""

    def __init__(self, axis: int = 1):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.a, self.drop, self.pool = nn.Identity(), nn.Dropout(), nn.AdaptiveAvgPool2d((1, 1))
        self.last, self.axis = nn.Conv2d(10, 2, 1), axis

    def forward(self, x):
        both = torch.cat([F.relu(self.left(x)), self.right(x).relu()], dim=self.axis)
        return torch.flatten(self.pool(torch.relu(self.last(self.drop(self.a(both))))), 1)


def test_concatenated_branches_share_one_scale():
    network = quantized(Functional())
    assert network.by_name["left"].scale == network.by_name["right"].scale == network.scales["a"]
    assert [type(node) for node in network.nodes] == [
        Convolution, Convolution, Concatenation, Site, Convolution, GlobalAveragePool
    ]  # fmt: skip
    assert network.by_name["last"].relu


def test_functions_and_methods_run_as_modules_do():
    module = Functional().eval()
    with torch.inference_mode():
        exact = module(data.normalise(IMAGES))
    approximate = VectorEngine(quantized(module)).forward(IMAGES)
    assert (approximate - exact).abs().max() < 0.03 * exact.abs().max()


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function, *arguments, **options):
        super().__init__()
        self.call = lambda x: function(x, *arguments, **options)

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize(
    ("pool", "node", "side"),
    [
        (nn.AvgPool2d(3, 2), AveragePool, 3),
        (Called(F.avg_pool2d, 3, stride=2), AveragePool, 3),
        (Called(F.avg_pool2d, (2, 2)), AveragePool, 4),
        (Called(F.max_pool2d, 2), MaxPool, 4),
        (Called(F.max_pool2d, 3, 2, ceil_mode=True), MaxPool, 4),
    ],
)
def test_pools_as_functions_and_as_modules(pool, node, side):
    network = quantized(head(pool=pool))
    (found,) = (each for each in network.nodes if isinstance(each, node))
    assert network.shapes[found.name] == (4, side, side)


@pytest.mark.parametrize("pool", [
    nn.AdaptiveAvgPool2d(1), Called(F.adaptive_avg_pool2d, 1), Called(F.adaptive_avg_pool2d, (1, 1)),
    Called(lambda x: x.mean((2, 3))), Called(lambda x: x.mean([-1, -2], keepdim=True)), Called(torch.mean, dim=(2, 3)),
])  # fmt: skip
def test_global_average_pools(pool):
    module = chain(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(), a=nn.Identity(), p=pool, f=nn.Flatten(), last=nn.Linear(4, 2))
    assert [type(node) for node in quantized(module).nodes] == [Convolution, Site, GlobalAveragePool, Linear]


# -- ReLU6


def wide_range(relu: nn.Module) -> nn.Sequential:
    """Activations of which many lie above 6."""
    torch.manual_seed(0)
    module = chain(c=nn.Conv2d(3, 4, 3), r=relu, a=nn.Identity(), p=nn.AdaptiveAvgPool2d(1), f=nn.Flatten(),
                   last=nn.Linear(4, 2)).eval()  # fmt: skip
    with torch.no_grad():
        module.c.weight *= 20
    return module


@pytest.mark.parametrize("relu", [nn.ReLU6(), Called(F.relu6)])
def test_code_255_of_a_relu6_is_at_most_6(relu):
    module = wide_range(relu)
    network = quantized(module)
    assert 255 * network.scales["a"] <= 6 < 255 * quantized(wide_range(nn.ReLU())).scales["a"]
    with torch.inference_mode():
        exact = module(data.normalise(IMAGES))
    assert (VectorEngine(network).forward(IMAGES) - exact).abs().max() < 0.03 * exact.abs().max()


def test_no_way_to_fit_a_scale_passes_the_limit_of_a_relu6():
    network = quantize.quantize(
        wide_range(nn.ReLU6()), IMAGES, model="m", classes=("0", "1"), layers={"a": "a"}, attention=(),
        scale_of=lambda sample: 1.0,
    )  # fmt: skip
    assert network.scales["a"] == 6 / 255


def test_concatenated_tensors_end_in_a_relu6_all_or_none():
    class Both(Functional):
        def forward(self, x):
            both = torch.cat([F.relu6(self.left(x)), self.second(self.right(x))], 1)
            return torch.flatten(self.pool(torch.relu(self.last(self.a(both)))), 1)

    module = Both()
    module.second = F.relu6
    network = quantized(module)
    assert network.scales["left"] == network.scales["right"] <= 6 / 255
    module.second = F.relu
    assert refusal(module) == (
        "'left' ends in a ReLU6 and shares its scale with 'right', which does not: end both alike"
    )


def test_logits_have_no_relu6():
    module = chain(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(), a=nn.Identity(), last=nn.Conv2d(4, 2, 1), s=nn.ReLU6())
    assert refusal(module) == "'last' gives the logits, which are not cut: a ReLU6 cannot follow it"


# -- residual additions


class Residual(nn.Module):
    """A record point, a block around it as `join` has it, and a classifier."""

    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.a, self.pool, self.last = nn.BatchNorm2d(4), nn.Identity(), nn.MaxPool2d(2), nn.Linear(4 * 9, 2)
        self.join = join

    def forward(self, x):
        return self.last(torch.flatten(self.pool(self.join(self, self.a(torch.relu(self.first(x))))), 1))


SIGNED = {
    "identity": lambda m, x: torch.relu(m.norm(m.left(x)) + x),
    "a convolution": lambda m, x: F.relu(torch.add(m.left(x), m.norm(m.right(x)))),
    "a convolution with ReLU": lambda m, x: (m.right(x).relu() + m.norm(m.left(x))).relu(),
    "ReLU6": lambda m, x: F.relu6(m.left(x) + F.relu6(m.right(x))),
}


@pytest.mark.parametrize("join", SIGNED)
def test_residual_additions_follow_the_float_module(join):
    module = Residual(SIGNED[join]).eval()
    network = quantized(module)
    (added,) = (node for node in network.nodes if isinstance(node, ScaledAddition))
    for source, factor in zip(added.inputs, added.multiplier.tolist(), strict=True):
        scale = network.scales.get(source)
        assert factor == (1 if scale is None else round(scale / added.scale * 2**16))
    wide = [node for node in network.nodes if isinstance(node, Convolution) and node.logits]
    assert {node.name for node in wide} == set(added.inputs) - set(network.scales)
    assert {node.scale for node in wide} == {added.scale}
    with torch.inference_mode():
        exact = module(data.normalise(IMAGES))
    assert (VectorEngine(network).forward(IMAGES) - exact).abs().max() < 0.03 * exact.abs().max()


def test_additions_of_codes_keep_one_scale_unless_a_relu6_ends_them():
    plain = quantized(Residual(lambda m, x: torch.relu(x + torch.relu(m.left(x)))))
    assert [node.name for node in plain.nodes if isinstance(node, Addition)] == ["add"]
    for join in (lambda m, x: x + F.relu6(m.left(x)), lambda m, x: F.relu6(x + m.left(x).relu())):
        network = quantized(Residual(join))
        (added,) = (node for node in network.nodes if isinstance(node, ScaledAddition))
        assert all(scale is not None for scale in map(network.scales.get, added.inputs))


@pytest.mark.parametrize(
    ("join", "told"),
    [
        (lambda m, x: m.left(x) + x, "'add' must be followed by a ReLU: its codes have no sign"),
        (lambda m, x: torch.relu(m.pool(m.left(x)) + m.pool(x)), "'left' must be followed by a ReLU: its codes have no sign"),
        (lambda m, x: torch.relu(m.left(x) + x) + m.right(x), "'add_1' must be followed by a ReLU: its codes have no sign"),
        (lambda m, x: torch.relu((y := m.left(x)) + x) + torch.relu(y + m.right(x)),
         "'left' must be followed by a ReLU, or read by one addition alone"),
    ],
)  # fmt: skip
def test_additions_without_an_integer_form(join, told):
    assert refusal(Residual(join)) == told


def test_the_input_itself_is_not_added():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.a = nn.Conv2d(3, 3, 1), nn.Identity()

        def forward(self, x):
            return self.a(torch.relu(x + self.c(x)))

    assert "the last weighted layer" in refusal(Direct())


# -- refusals


def head(**parts: nn.Module) -> nn.Sequential:
    """Those parts between a 1x1 convolution to four channels with its layer and the classifier."""
    classifier = {"p": nn.AdaptiveAvgPool2d(1), "f": nn.Flatten(), "last": nn.Linear(4, 2)}
    return chain(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(), a=nn.Identity(), **parts, **classifier)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (nn.Sigmoid(), "Sigmoid"),
        (nn.LPPool2d(2, 2), "LPPool2d"),
        (nn.ConvTranspose2d(4, 4, 1), "ConvTranspose2d"),
        (nn.AdaptiveAvgPool2d(2), "AdaptiveAvgPool2d"),
        (nn.GroupNorm(2, 4), "GroupNorm"),
    ],
)
def test_unsupported_modules_are_named(part, name):
    assert refusal(head(odd=part)) == f"'odd' ({name}) has no INT8 counterpart"


@pytest.mark.parametrize(
    "options", [{"dilation": 2}, {"stride": (1, 2)}, {"padding": (1, 0)}, {"padding": "same"},
                {"padding": 1, "padding_mode": "reflect"}]
)  # fmt: skip
def test_unsupported_convolutions(options):
    assert refusal(head(odd=nn.Conv2d(4, 4, 3, **options))) == (
        "'odd': convolutions must have no dilation, equal strides and zero padding"
    )


@pytest.mark.parametrize("options", [{"kernel_size": (2, 1)}, {"kernel_size": 3, "padding": 1},
                                     {"kernel_size": 2, "dilation": 2}])  # fmt: skip
def test_unsupported_pools(options):
    assert refusal(head(odd=nn.MaxPool2d(**options))) == (
        "'odd': max pools must have square windows, no padding and no dilation"
    )


@pytest.mark.parametrize("options", [{"kernel_size": (2, 1)}, {"kernel_size": 3, "padding": 1},
                                     {"kernel_size": 3, "ceil_mode": True}, {"kernel_size": 2, "divisor_override": 3}])  # fmt: skip
def test_unsupported_average_pools(options):
    message = "'{}': average pools must have square windows, no padding, no ceil_mode and no divisor_override"
    assert refusal(head(odd=nn.AvgPool2d(**options))) == message.format("odd")
    assert refusal(head(odd=Called(F.avg_pool2d, **options))) == message.format("avg_pool2d")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (Called(torch.mean), "'mean' is a mean over None: only height and width (2, 3) can be"),
        (Called(torch.mean, dim=1), "'mean' is a mean over 1: only height and width (2, 3) can be"),
        (Called(torch.mean, dim=(1, 2)), "'mean' is a mean over (1, 2): only height and width (2, 3) can be"),
        (Called(F.max_pool2d, 3, padding=1), "'max_pool2d': max pools must have square windows, no padding and no dilation"),
    ],
)  # fmt: skip
def test_unsupported_functions(call, told):
    assert refusal(head(odd=call)) == told


def test_batch_norm_and_relu_must_follow_their_layer():
    assert refusal(head(odd=nn.BatchNorm2d(4))) == (
        "'odd': batch norm must follow its convolution or linear layer directly"
    )
    for relu in (nn.ReLU(), nn.ReLU6()):
        assert refusal(head(odd=relu)) == "'odd': ReLU must follow its convolution or linear layer or addition directly"


def test_output_without_relu_has_no_sign():
    module = chain(c=nn.Conv2d(3, 4, 1), a=nn.Identity(), last=nn.Conv2d(4, 2, 1))
    assert refusal(module) == "'c' must be followed by a ReLU: its codes have no sign"


def test_functions_without_a_counterpart():
    class Joined(nn.Module):
        def __init__(self, join):
            super().__init__()
            self.c, self.a, self.join = nn.Conv2d(3, 4, 1), nn.Identity(), join

        def forward(self, x):
            y = self.a(torch.relu(self.c(x)))
            return self.join(y, y)

    assert refusal(Joined(lambda x, y: x + 1)) == "'add' must add two tensors"
    assert refusal(Joined(lambda x, y: torch.add(x, y, alpha=2))) == "'add' must add two tensors"
    assert refusal(Joined(lambda x, y: x.sigmoid())) == "'sigmoid' (call_method sigmoid) has no INT8 counterpart"


def test_concatenation_over_another_axis():
    assert refusal(Functional(axis=2)) == "'cat' concatenates over axis 2: only channels (1) can be"


class Flattened(nn.Module):
    """A classifier behind a flattening that `flatten` does."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.a, self.last, self.flatten = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Linear(4 * 64, 2), flatten

    def forward(self, x):
        return self.last(self.flatten(self.a(torch.relu(self.conv(x)))))


@pytest.mark.parametrize("flatten", [lambda x: torch.flatten(x, 1), lambda x: x.flatten(1), lambda x: x.flatten(start_dim=1),
                                     lambda x: torch.flatten(x, 1, 3), nn.Flatten(), nn.Flatten(1, 3)])  # fmt: skip
def test_flattening_all_but_the_first_dimension(flatten):
    network = quantized(Flattened(flatten))
    assert network.shapes[network.by_name["last"].inputs[0]] == (256,)


@pytest.mark.parametrize("flatten", [lambda x: torch.flatten(x, 2), lambda x: x.flatten(2), torch.flatten,
                                     lambda x: torch.flatten(x, 1, 2), nn.Flatten(2), nn.Flatten(0)])  # fmt: skip
def test_other_flattenings_are_refused(flatten):
    assert re.search("flattens from dimension [012] to (-1|2): only all but the first", refusal(Flattened(flatten)))


def test_concatenation_of_what_is_no_convolution():
    class Skip(Functional):
        def forward(self, x):
            return self.last(self.a(torch.cat([x, self.right(x).relu()], 1)))

    assert refusal(Skip()) == ("'cat' must join outputs of convolutions or linear layers, and reads the input itself")


def test_record_point_that_never_runs():
    assert refusal(head(), layers={"a": "a", "b": "nowhere"}) == (
        "record points must be nn.Identity modules that the forward pass runs: ['b']"
    )


def test_record_point_that_runs_twice():
    point = nn.Identity()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.a = nn.Conv2d(3, 4, 1), point

        def forward(self, x):
            return self.a(self.a(torch.relu(self.c(x))))

    assert refusal(Twice()) == "record point 'a' runs twice in one forward pass: each must have one place"


# -- what a foreign module may do


def logits_of(module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Float and INT8 logits of a foreign module on the images."""
    network = quantized(module)
    with torch.inference_mode():
        return module(data.normalise(IMAGES)).numpy(), VectorEngine(network).forward(IMAGES).numpy()


def test_linear_weights_in_any_memory_order():
    module = chain(c=nn.Conv2d(3, 2, 8), r=nn.ReLU(), a=nn.Identity(), f=nn.Flatten(), d=nn.Linear(2, 128)).eval()
    module.d.weight = nn.Parameter(torch.randn(2, 128, generator=torch.Generator().manual_seed(0)).t())
    exact, coded = logits_of(module)
    assert np.abs(exact - coded).max() < 0.03 * np.abs(exact).max()


def test_pool_before_the_first_convolution_keeps_the_zero_point():
    torch.manual_seed(0)
    module = chain(p=nn.MaxPool2d(2), c=nn.Conv2d(3, 4, 3, padding=1), r=nn.ReLU(), a=nn.Identity(),
                   d=nn.Conv2d(4, 2, 1), g=nn.AdaptiveAvgPool2d(1), f=nn.Flatten()).eval()  # fmt: skip
    exact, coded = logits_of(module)
    assert np.abs(exact - coded).max() < 0.03 * np.abs(exact).max()


def test_pool_with_a_pair_of_equal_strides():
    module = head(odd=nn.MaxPool2d((2, 2), stride=(2, 2)))
    assert next(node for node in quantized(module).nodes if isinstance(node, MaxPool)).stride == 2


def test_batch_norm_behind_relu_is_refused():
    module = chain(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(), n=nn.BatchNorm2d(4), a=nn.Identity())
    assert refusal(module) == "'n': batch norm must follow its convolution or linear layer directly"


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_batch_norm_without_its_numbers_is_refused(options):
    module = chain(c=nn.Conv2d(3, 4, 1), n=nn.BatchNorm2d(4, **options), r=nn.ReLU(), a=nn.Identity())
    assert refusal(module) == "'n': batch norm must be affine and track running statistics"


def test_relu_on_one_of_two_readers_is_refused():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.same, self.a = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Identity()

        def forward(self, x):
            y = self.c(x)
            return torch.cat([self.a(torch.relu(self.same(y))), y], 1)

    assert refusal(Branched()) == (
        f"'{torch.relu}': ReLU must follow its convolution or linear layer or addition directly"
    )


def test_flatten_first():
    module = chain(f=nn.Flatten(), d=nn.Linear(192, 4), r=nn.ReLU(), a=nn.Identity(), e=nn.Linear(4, 2))
    assert [type(node) for node in quantized(module).nodes] == [Flatten, Linear, Site, Linear]


def test_pool_behind_the_last_weighted_layer_is_refused():
    module = chain(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(), a=nn.Identity(), last=nn.Conv2d(4, 2, 1), p=nn.MaxPool2d(2))
    assert refusal(module) == "'p' follows the last weighted layer, whose output is float: move it before"


def test_control_flow_is_refused():
    class Choosing(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    text = refusal(Choosing())
    assert text.startswith("m cannot be traced by torch.fx (")
    assert text.endswith("): its forward must have no control flow")


# -- a module without record points, and all that is wrong with one


def whole(module: nn.Module, **about):
    return quantize.quantize(module, IMAGES, model="m", classes=("0", "1"), **about)


def test_sites_by_rule():
    """Behind each tensor that is multiplied, under a name of its own; what the first layer reads is pixels."""
    module = chain(
        stem=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), conv=nn.Conv2d(4, 4, 2), relu=nn.ReLU(),
        flatten=nn.Flatten(), last=nn.Linear(16, 2),
    )  # fmt: skip
    network = whole(module)
    assert [(node.name, node.inputs) for node in network.nodes] == [
        ("stem.0", ("input",)), ("stem.2", ("stem.0",)), ("stem", ("stem.2",)), ("conv:0", ("stem",)),
        ("flatten:0", ("conv:0",)), ("flatten", ("flatten:0",)), ("last:0", ("flatten",)),
    ]  # fmt: skip
    assert network.layers == ("stem", "flatten") and network.attention == ("stem", "flatten")
    assert whole(module, attention=("stem",)).attention == ("stem",)


def test_a_module_without_anything_to_approximate():
    with pytest.raises(InputError, match=r"nothing to approximate: a convolution or a linear layer must read"):
        whole(chain(a=nn.Conv2d(3, 2, 1), b=nn.AdaptiveAvgPool2d(1)))
    with pytest.raises(InputError, match=r"must have convolutions or linear layers, and has none"):
        whole(chain(a=nn.MaxPool2d(2)))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, dilation=2)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.Sequential(nn.ELU())
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = torch.cat(tensors=[self.act(x), torch.sigmoid(x)], dim=1)
        return self.last(x * 2).view(2, -1)


def test_all_problems_are_told_at_once_and_none_is_blamed_on_another():
    with pytest.raises(InputError) as caught:
        whole(Odd())
    assert caught.value.problems == [
        "'conv': convolutions must have no dilation, equal strides and zero padding",
        "'act.0' (ELU) has no INT8 counterpart",
        "'sigmoid' (call_function sigmoid) has no INT8 counterpart",
        "'cat' (call_function cat) has no INT8 counterpart with these arguments",
        "'mul' (call_function mul) has no INT8 counterpart",
        "'view' (call_method view) has no INT8 counterpart",
    ]


def test_every_layer_without_relu_is_told():
    with pytest.raises(InputError) as caught:
        whole(chain(a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.ReLU(), d=nn.Conv2d(4, 4, 1), e=nn.Conv2d(4, 2, 1)))
    assert [problem.split(" must ")[0] for problem in caught.value.problems] == ["'a:0'", "'d:0'"]


def test_what_forward_takes_and_returns():
    class Two(nn.Module):
        def forward(self, x, mask):
            return x

    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            x = torch.relu(self.first(x))
            self.second(x)
            return x

    class Both(Early):
        def forward(self, x):
            return x, self.first(x)

    for module, told in (
        (Two(), "forward takes 'mask', too: it must take the images alone"),
        (Early(), "forward returns relu: it must return one tensor, that of 'second:0', which runs last"),
        (Both(), "forward returns (x, first): it must return one tensor, that of 'first:0', which runs last"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            whole(module)
