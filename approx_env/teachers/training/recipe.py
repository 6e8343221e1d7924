"""What decides a teacher's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from approx_env.options import integer, number, option, switch

LEARNING_RATES = {"muon": 0.1, "sgd": 0.1}  # optimizer -> highest learning rate unless told


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
    precision: str = option("auto", "of products; auto: bf16 in hardware", choices=("auto", "float32", "bf16"))
    seed: int = integer(0, "of weights, order, augmentation and dropout", 0)

    @property
    def architecture(self) -> dict[str, Any]:
        """The options of `models.build`."""
        given = {"squeeze_ratio": self.sr, "pct3x3": self.pct3x3}
        given = {name: value for name, value in given.items() if value is not None}
        return {"batch_norm": self.batch_norm, "dropout": self.dropout, **given}
