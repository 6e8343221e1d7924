"""A folder laid out as Imagenette's, with images of many sizes: trained on, quantised and searched at 224 pixels."""

import json

import numpy as np
import pytest
from PIL import Image

from approx_env import data
from approx_env.teachers import store
from approx_env.teachers.training import program
from search import run
from tests.command import node

CLASSES = ("n01440764", "n02102040", "n02979186")
SIDES = ((320, 240), (500, 375), (213, 320), (400, 400))  # width, height


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of one colour each, with noise, as train/ and val/."""
    root = tmp_path_factory.mktemp("imagenette2-320")
    generator = np.random.default_rng(0)
    for part, count in (("train", 48), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                width, height = SIDES[k % len(SIDES)]
                pixels = generator.integers(0, 80, (height, width, 3))
                pixels[..., label] += 150
                mode = "L" if k == 5 else "RGB"  # Imagenette has grey images, too
                Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(root / part / name / f"{name}_{k}.JPEG")
    return root


@pytest.mark.slow
def test_training_and_search(folder, tmp_path, capsys):
    argv = f"""--model squeezenet_v1_1 --dataset imagefolder --data-dir {folder} --epochs 8 --batch-size 4
        --optimizer sgd --lr 0.02
        --output {tmp_path}"""
    assert program.main(argv.split()) == 0, capsys.readouterr().err
    path = tmp_path / f"squeezenet_v1_1-imagefolder-{folder.name}.int8.json"
    made = store.read(path)
    assert made.network.input_shape == (3, 224, 224)
    assert made.network.classes == CLASSES
    assert made.about["int8_accuracy"]["validation"] > 0.6  # colours are easily told apart
    argv = f"""--layers squeezenet_v1_1 --dataset imagefolder --data-dir {folder} --teacher {path} --calib-batches 2
        --calib-batch-size 4 --search-images 4 --algorithm quintile --num-env-runners 1 --address {node()}
        --results {tmp_path}
        --run-name r"""
    assert run.main(argv.split()) == 0, capsys.readouterr().err
    best = json.loads((tmp_path / "r" / "best.json").read_text())
    assert list(best["layers"]) == ["conv1", *(f"fire{k}" for k in range(2, 10))]


def test_images_are_cropped_in_the_middle(folder):
    images, _ = data.load("imagefolder", folder).sized(224).load("test")
    assert images.shape == (6, 3, 224, 224)
    whole, _ = data.load("imagefolder", folder).sized(224).load("train", whole=True)
    assert whole.shape[1:] == (3, 256, 256)
