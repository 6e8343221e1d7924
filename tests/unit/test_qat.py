import numpy as np
import pytest
import torch

from approx_env import data
from approx_env.engines.vector.engine import VectorEngine
from approx_env.int8 import quantize
from approx_env.teachers import models, qat

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8)


def drafted(name: str, **options) -> quantize.Draft:
    torch.manual_seed(0)
    module = models.build(name, 4, **options).eval()
    return quantize.draft(
        module, IMAGES, model=name, classes=tuple("abcd"), layers=module.layers, attention=module.attention,
        standardised=module.standardised,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["squeezenet_compact", "squeezenet_complex_bypass", "alexnet", "resnet8"])
def test_it_computes_what_the_int8_network_computes(name):
    draft = drafted(name)
    pixels = data.standardise(IMAGES) if draft.header["standardised"] else IMAGES
    with torch.inference_mode():
        found = qat.FakeQuantised(draft)(data.normalise(pixels))
    expected = VectorEngine(draft.network()).forward(IMAGES)
    apart = (found - expected).abs() / expected.abs().max()
    # Of the INT8 network's values one in 65,536 lies half way between two codes. Float sums may miss it on either side.
    assert apart.median() < 2e-3
    assert apart.mean() < 0.01


def test_untouched_it_gives_the_draft_back():
    draft = drafted("squeezenet_simple_bypass")
    again = qat.FakeQuantised(draft).draft()
    assert again.scales == pytest.approx(draft.scales)
    one, other = draft.network(), again.network()
    for node, same in zip(one.nodes, other.nodes, strict=True):
        if hasattr(node, "weight"):
            assert (node.weight != same.weight).mean() < 1e-3  # weights in float32 may round the other way


def test_gradients_reach_weights_biases_and_scales():
    module = qat.FakeQuantised(drafted("squeezenet_simple_bypass"))
    module(data.normalise(IMAGES)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_step_along_the_gradient_lowers_the_loss():
    module, labels = qat.FakeQuantised(drafted("squeezenet_compact")), torch.arange(8) % 4
    optimizer = torch.optim.SGD(module.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(module(data.normalise(data.standardise(IMAGES))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.9 * losses[0]


def test_trained_scales_stay_below_what_a_relu6_allows():
    module = qat.FakeQuantised(drafted("mobilenet"))
    with torch.no_grad():
        for scale in module.log_scales.values():
            scale += 10
    scales = [scale for scale in module.draft().network().scales.values() if scale is not None]
    assert max(scales[1:]) == 6 / 255  # the first is the input's
    module(data.normalise(IMAGES)).square().sum().backward()
    assert all(scale.grad.abs() > 0 for scale in module.log_scales.values())  # which would bring them back


def test_trained_scales_stay_shared():
    module = qat.FakeQuantised(drafted("squeezenet_complex_bypass"))
    with torch.no_grad():
        for number, scale in enumerate(module.log_scales.values()):
            scale += 0.01 * number
    draft = module.draft()
    for name, group in draft.sharing.items():
        assert group is None or draft.scales[name] == draft.scales[group]
    network = draft.network()
    assert {network.scales[source] for source in network.by_name["add"].inputs} == {network.scales["add"]}


def test_rounding_passes_gradients():
    x = torch.tensor([0.4, 1.5, -0.7], requires_grad=True)
    y = qat._rounded(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert y.tolist() == [0.0, 2.0, -1.0]
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_rounded_weights_are_those_of_the_quantiser():
    draft = drafted("squeezenet_compact")
    module, network = qat.FakeQuantised(draft), draft.network()
    for name, parts in draft.parts.items():
        if "float_weight" in parts:
            node = network.by_name[name]
            scale = network.weight_scale(node).reshape(-1, *[1] * (node.weight.ndim - 1))
            weight, bias = (part.detach() for part in module._rounded_weight(name, parts))
            np.testing.assert_allclose(weight, node.weight * scale, rtol=1e-5, atol=1e-7)
            unit = scale.reshape(-1) * network.scales[node.inputs[0]]
            np.testing.assert_allclose(bias, node.bias * unit, rtol=1e-5, atol=1e-7)
