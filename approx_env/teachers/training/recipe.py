"""What decides a teacher's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from approx_env.options import integer, listed, number, option, switch

LEARNING_RATES = {"muon": 0.1, "sgd": 0.1}  # optimizer -> highest learning rate unless told


def _of_channels(help: str, **bounds) -> Any:
    return option(
        None, f"{help} (default: pixels are (p - 128) / 64)", type=_three, kind="three numbers, as 0.5,0.5,0.5",
        metavar="LIST", high=1, **bounds,
    )  # fmt: skip


def _three(text: str) -> tuple[float, ...]:
    values = listed(float, distinct=False)(text)
    if len(values) != 3:
        raise ValueError
    return values


@dataclass(frozen=True)
class Recipe:
    """What decides a teacher's weights, besides its model and dataset."""

    epochs: int = integer(12, "passes over the train split; 0: the weights stay as they are given", 0)
    small_epochs: int = integer(0, "how many of them, the first, see images of 3/4 of the side", 0)
    qat_epochs: int = integer(0, "quantisation-aware passes afterwards", 0)
    batch_size: int = integer(128, "images a step", 2)
    optimizer: str = option("muon", "of the weights", choices=tuple(LEARNING_RATES))
    lr: float | None = number(None, "highest learning rate (default 0.1)", above=0, high=10)
    head_lr: float = number(0.1, "of the last layer and of vectors, beside Muon", above=0, high=10)
    label_smoothing: float = number(0.1, "share of the target spread over all classes", low=0, below=1)
    dropout: float = number(0.0, "share of features dropped before the classifier", low=0, below=1)
    cutout: int = integer(0, "side of the square covered in each training image, pixels", 0, high=1000)
    cutmix: float = number(0.0, "share of the batches whose images are pasted into one another", low=0, high=1)
    batch_norm: bool = switch(True, "batch norm")
    sr: float | None = number(None, "SqueezeNet's squeeze ratio (default: the model's own)", above=0, high=1)
    pct3x3: float | None = number(None, "SqueezeNet's share of 3x3 filters (default 0.5)", above=0, below=1)
    ema: float = number(0.0, "epochs that the average of the weights looks back over; 0: no average", low=0, high=1000)
    initial: str | None = option(
        None, "float teacher to begin from, a .float.json (default: fresh weights)", metavar="FILE"
    )
    weights: str | None = option(
        None, "state_dict to begin from, a .safetensors (default: fresh weights, or what a file brings)", metavar="FILE"
    )
    mean: tuple[float, ...] | None = _of_channels("means, of pixels in [0, 1], that these weights were trained with")
    std: tuple[float, ...] | None = _of_channels("standard deviations that they were divided by", above=0)
    precision: str = option("auto", "of products; auto: bf16 in hardware", choices=("auto", "float32", "bf16"))
    seed: int = integer(0, "of weights, order, augmentation and dropout", 0)

    @property
    def architecture(self) -> dict[str, Any]:
        """The options of `models.build`."""
        given = {"squeeze_ratio": self.sr, "pct3x3": self.pct3x3}
        given = {name: value for name, value in given.items() if value is not None}
        return {"batch_norm": self.batch_norm, "dropout": self.dropout, **given}
