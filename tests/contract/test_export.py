"""Every member of the family goes through every format, with its own sites and with all."""

import numpy as np
import pytest
import torch

from approx_env import export
from approx_env.export import bundle
from approx_env.export.deployment import Deployment
from approx_env.int8 import quantize
from approx_env.int8.network import Network
from approx_env.int8.sites import CHOICES, with_sites
from approx_env.teachers import models
from tests import exports
from tests.contract.test_family import SLOW, members
from tests.unit.test_export import ABOUT

LARGE = set(models.MODELS) - {"squeezenet_compact", "resnet8"}  # they take seconds to compile


@pytest.fixture(scope="module", params=members(SLOW))
def network(request) -> Network:
    """A member with random weights, quantised on random images."""
    torch.manual_seed(0)
    module = models.build(request.param, 10).eval()
    images = np.random.default_rng(0).integers(0, 256, (4, 3, module.image_size, module.image_size), np.uint8)
    return quantize.quantize(module, images, model=request.param, classes=tuple("0123456789"), layers=module.layers,
                             attention=module.attention, standardised=module.standardised)  # fmt: skip


def deployment(network: Network, sites: str) -> Deployment:
    made = with_sites(network, sites)
    images = np.random.default_rng(1).integers(0, 256, (2, *network.input_shape), np.uint8)
    return exports.deployment(made, images)


@pytest.mark.parametrize("sites", CHOICES)
def test_onnx_runtime_gives_every_integer(network, sites):
    exports.check_onnx(deployment(network, sites))


@pytest.mark.parametrize("network", members(LARGE), indirect=True)
@pytest.mark.parametrize("sites", CHOICES)
def test_the_c_program_gives_every_integer(network, sites, tmp_path):
    folder = exports.written("c", deployment(network, sites), tmp_path / "c")
    for mode in ((), ("-DNETWORK_SHARED",)):
        exports.check_trace(exports.compiled(folder, *mode), folder)


@pytest.mark.slow
@pytest.mark.parametrize("format", export.NAMES)
def test_every_format_is_written(network, format, tmp_path):
    manifest = bundle.write(tmp_path / "out", format, deployment(network, "all"), ABOUT)
    assert len(manifest["files"]) >= 2
