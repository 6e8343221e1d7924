"""The C program and the ONNX model give the reference's integers on random networks."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from approx_env.int8.sites import with_sites
from tests import exports
from tests.property.test_engine_twin import cases, without_sites


def random_deployment(case, data):
    """A random network with some of its layers, or with all sites."""
    network, images, configuration = case
    left_out = data.draw(st.sets(st.sampled_from(network.layers[:-1])))
    made = with_sites(without_sites(network, left_out), data.draw(st.sampled_from(["standard", "all"])))
    codes = dict(zip(made.layers, configuration.values(), strict=False))
    return exports.deployment(made, images[:9], codes)


@settings(max_examples=25)
@given(cases(), st.data())
def test_onnx(case, data):
    exports.check_onnx(random_deployment(case, data))


def check_c(case, data) -> None:
    made = random_deployment(case, data)
    with tempfile.TemporaryDirectory() as place:
        folder = exports.written("c", made, Path(place) / "c")
        for mode in ((), ("-DNETWORK_SHARED",)):
            exports.check_trace(exports.compiled(folder, *mode), folder)


@settings(max_examples=3)
@given(cases(), st.data())
def test_c(case, data):
    check_c(case, data)


@pytest.mark.slow
@settings(max_examples=40)
@given(cases(), st.data())
def test_c_on_many(case, data):
    check_c(case, data)
