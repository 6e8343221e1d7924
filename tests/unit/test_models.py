import pytest
import torch
import torchvision
from torch import nn

from approx_env.errors import InputError
from approx_env.teachers import models
from approx_env.teachers.models import squeezenet

SQUEEZENET_LAYERS = ["conv1", *(f"fire{i}" for i in range(2, 10))]
ALEXNET_LAYERS = [*(f"conv{i}" for i in range(1, 6)), "fc1", "fc2"]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("squeezenet", {"batch_norm": False}, 729_034),
        ("squeezenet", {}, 734_986),
        ("squeezenet_simple_bypass", {}, 734_986),  # identities cost nothing
        # 1x1 convolutions with batch norm around fire2, 4, 6 and 8
        ("squeezenet_complex_bypass", {}, 734_986 + sum(i * o + 3 * o for i, o in
            ((96, 128), (128, 256), (256, 384), (384, 512)))),
        ("squeezenet_v1_1", {"batch_norm": False}, 727_626),
        ("squeezenet_v1_1", {}, 733_514),
        ("squeezenet_v1_0", {"batch_norm": False}, 740_554),
        # conv1, four Fire modules, conv10
        ("squeezenet_compact", {"batch_norm": False}, 1_792 + 22_688 + 24_736 + 45_344 + 49_440 + 2_570),
        ("alexnet", {}, 3_112_266),
        ("alexnet", {"batch_norm": False}, 3_112_266 - 2 * (64 + 192 + 384 + 256 + 256)),
        ("vgg16", {"batch_norm": False}, 14_719_818),
        # MLPerf Tiny's 78,666 without the 480 moving averages that Keras counts
        ("resnet8", {}, 78_666 - 480),
        # He et al.: 0.27 M; here with biases, and 1x1 convolutions as shortcuts of stages 2 and 3
        ("resnet20", {"batch_norm": False}, 448 + 6 * 2_320 + 4_640 + 5 * 9_248 + 18_496 + 5 * 36_928 + 544 + 2_112 + 650),
        # conv1; 3x3 and bias of each depthwise channel; 1x1 with bias; the last layer
        ("mobilenet", {"batch_norm": False}, 896 + 10 * 4_960 + sum(i * o + o for i, o in (
            (32, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 5, (512, 1024),
            (1024, 1024))) + 10_250),
    ],
)  # fmt: skip
def test_parameter_counts(name, options, count):
    assert parameters(models.build(name, 10, **options)) == count


@pytest.mark.parametrize(
    ("name", "theirs"), [("squeezenet_v1_0", "squeezenet1_0"), ("squeezenet_v1_1", "squeezenet1_1")]
)
def test_imagenet_shapes_have_torchvisions_parameters(name, theirs):
    ours, known = models.build(name, 1000, batch_norm=False), getattr(torchvision.models, theirs)()
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (ours, known)]
    assert shapes[0] == shapes[1]
    with torch.inference_mode():
        features = [model.eval()(torch.zeros(1, 3, 224, 224)).shape for model in (ours, known)]
    assert features[0] == features[1]


@pytest.mark.parametrize(
    ("ratio", "pct", "squeeze", "expand3x3"), [(0.125, 0.5, 16, 64), (1.0, 0.99, 128, 127), (0.25, 0.01, 32, 1)]
)
def test_metaparameters(ratio, pct, squeeze, expand3x3):
    fire = models.build("squeezenet", 10, squeeze_ratio=ratio, pct3x3=pct).blocks["fire2"]
    widths = [part[0].out_channels for part in (fire.squeeze, fire.expand1x1, fire.expand3x3)]
    assert widths == [squeeze, 128 - expand3x3, expand3x3]


def test_bypass_adds_the_input():
    simple = models.build("squeezenet_simple_bypass", 10).eval().blocks
    assert [name for name, block in simple.items() if isinstance(block, squeezenet.Bypass)] == [
        "fire3",
        "fire5",
        "fire7",
        "fire9",
    ]
    x = torch.rand(2, 128, 4, 4)
    assert torch.equal(simple["fire3"](x), simple["fire3"].fire(x) + x)
    whole = models.build("squeezenet_complex_bypass", 10).blocks
    shortcuts = {name: type(block.shortcut) for name, block in whole.items() if isinstance(block, squeezenet.Bypass)}
    assert shortcuts == {f"fire{i}": nn.Identity if i % 2 else nn.Sequential for i in range(2, 10)}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("squeezenet", {"squeeze_ratio": 0.0}, "the squeeze ratio SR (--sr) must lie in (0, 1], got 0.0"),
        ("squeezenet", {"squeeze_ratio": 1.1}, "the squeeze ratio SR (--sr) must lie in (0, 1], got 1.1"),
        ("squeezenet", {"pct3x3": 1.0}, "the share of 3x3 filters (--pct3x3) must lie in (0, 1), got 1.0"),
        ("squeezenet", {"bypass": "long"}, "bypass must be one of none, simple, complex, got 'long'"),
        ("squeezenet", {"layout": "v2"}, "layout must be one of cifar, v1.0, v1.1, compact, got 'v2'"),
        (
            "vgg16",
            {"squeeze_ratio": 0.5},
            "--sr: only SqueezeNets have them, and vgg16 is none: leave them out",
        ),
    ],
)
def test_options_out_of_range(name, options, said):
    with pytest.raises(InputError) as caught:
        models.build(name, 10, **options)
    assert str(caught.value) == said


def test_fire_module_by_hand():
    fire = squeezenet.Fire(96, 16, 64, 64, batch_norm=False)
    assert parameters(fire) == (96 * 16 + 16) + (16 * 64 + 64) + (16 * 64 * 9 + 64)
    assert fire(torch.zeros(2, 96, 5, 5)).shape == (2, 128, 5, 5)


def test_squeezenet_record_points():
    model = models.build("squeezenet", 10)
    assert model.layers == {name: f"block_output.{name}" for name in SQUEEZENET_LAYERS}
    assert list(model.layers) == SQUEEZENET_LAYERS
    assert model.attention == ("fire4", "fire6", "fire8")


def test_alexnet_record_points():
    model = models.build("alexnet", 10)
    assert list(model.layers) == ALEXNET_LAYERS
    assert [model.layers[name] for name in ALEXNET_LAYERS] == [
        *(f"block_output.conv{i}" for i in range(1, 6)), "classifier.fc1.out", "classifier.fc2.out"
    ]  # fmt: skip
    assert model.attention == ("conv3", "conv4", "fc1")


def test_record_points_of_networks_that_end_in_an_average_pool():
    """It reads the last activation, and no multiplication does: that is no layer."""
    resnet = models.outline("resnet8")
    assert resnet.layers == {
        "conv1": "block_output.conv1",
        "block1_1_inner": "blocks.block1_1.inner", "block1_1": "block_output.block1_1",
        "block2_1_inner": "blocks.block2_1.inner", "block2_1": "block_output.block2_1",
        "block3_1_inner": "blocks.block3_1.inner",
    }  # fmt: skip
    assert resnet.attention == ("block1_1", "block2_1", "block3_1_inner")
    mobilenet = models.outline("mobilenet")
    pairs = [name for number in range(1, 14) for name in (f"depthwise{number}", f"pair{number}")]
    assert list(mobilenet.layers) == ["conv1", *pairs[:-1]]
    for module in (resnet, models.outline("resnet20"), mobilenet):
        assert set(module.attention) < set(module.layers)


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_shortcuts_are_convolutions_where_the_size_changes(name):
    blocks = models.outline(name).blocks
    changing = {block for block, part in blocks.items() if isinstance(getattr(part, "shortcut", None), nn.Conv2d)}
    assert changing == {"block2_1", "block3_1"}


def test_mobilenet_is_depthwise_and_1x1_by_turns():
    convolutions = [module for module in models.outline("mobilenet").modules() if isinstance(module, nn.Conv2d)]
    assert [conv.groups for conv in convolutions[1::2]] == [conv.in_channels for conv in convolutions[1::2]]
    assert {(conv.groups, conv.kernel_size) for conv in convolutions[2::2]} == {(1, (1, 1))}
    assert [conv.stride[0] for conv in convolutions[1::2]] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]


SHAPES = {
    "squeezenet": [
        (96, 32, 32), (128, 16, 16), (128, 16, 16), (256, 16, 16),
        (256, 8, 8), (384, 8, 8), (384, 8, 8), (512, 8, 8), (512, 4, 4),
    ],
    "alexnet": [(64, 16, 16), (192, 8, 8), (384, 4, 4), (256, 4, 4), (256, 4, 4), (512,), (256,)],
}  # fmt: skip


@pytest.mark.parametrize("classes", [2, 10])
def test_record_points_are_identities_that_see_each_layer_once(model, classes):
    module = models.build(model, classes).eval()
    seen = []
    for path in module.layers.values():
        point = module.get_submodule(path)
        assert isinstance(point, nn.Identity)
        point.register_forward_hook(
            lambda _, inputs, output: seen.append((tuple(output.shape[1:]), output.detach().min().item()))
        )
    logits = module(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, classes)
    assert [shape for shape, _ in seen] == SHAPES[model]
    assert all(lowest == 0 for _, lowest in seen)  # behind a ReLU


def test_weights_come_from_the_global_generator():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(models.build("squeezenet", 10).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_unknown_model():
    with pytest.raises(InputError) as caught:
        models.build("vgg99", 10)
    assert str(caught.value) == f"unknown model 'vgg99': it must be one of {', '.join(models.MODELS)}"


def test_an_outline_has_the_shapes_of_the_network_and_no_weights():
    made, outline = (
        models.build("squeezenet", 10, squeeze_ratio=0.5),
        models.outline("squeezenet", 10, squeeze_ratio=0.5),
    )
    assert [(name, one.shape) for name, one in made.named_parameters()] == [
        (name, one.shape) for name, one in outline.named_parameters()
    ]
    assert all(parameter.is_meta for parameter in outline.parameters())
    with pytest.raises(InputError, match="^--sr: only SqueezeNets have them"):
        models.outline("alexnet", squeeze_ratio=0.5)
