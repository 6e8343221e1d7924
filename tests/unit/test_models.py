import pytest
import torch
from torch import nn

from approx_env import models
from approx_env.errors import InputError

SQUEEZENET_LAYERS = ["conv1", *(f"fire{i}" for i in range(2, 10))]
ALEXNET_LAYERS = [*(f"conv{i}" for i in range(1, 6)), "fc1", "fc2"]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "batch_norm", "count"),
    [
        ("squeezenet", False, 729_034),
        ("squeezenet", True, 734_986),
        ("alexnet", True, 3_112_266),
        ("alexnet", False, 3_112_266 - 2 * (64 + 192 + 384 + 256 + 256)),
    ],
)
def test_parameter_counts(name, batch_norm, count):
    assert parameters(models.build(name, 10, batch_norm=batch_norm)) == count


def test_fire_module_by_hand():
    fire = models.Fire(96, 16, 64, 64, batch_norm=False)
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
    assert str(caught.value) == "unknown model 'vgg99': it must be one of squeezenet, alexnet"
