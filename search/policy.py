"""The policy that PPO trains: four ordered codes for a layer, each drawn from a masked distribution.

t1 is drawn first, then t2 given t1, then v1 and v2 between and above them, so that every action is valid by
construction. Each draw is a Gaussian, discretised and truncated to the interval that the earlier codes leave open:
two numbers from the network, mean and width as shares of the interval. A fresh policy has the quintile configuration
as its mean.

For training the distribution is conditioned on the stored action and never drawn again, so that the probability
ratio is exactly 1 on unchanged weights.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDistribution
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import nn

CODE_COUNT = 256
MASKED = -1e9  # logit of an impossible code: finite, so that no gradient is NaN
DRAW_ORDER = (0, 2, 1, 3)  # t1, t2, v1, v2 as columns of an action (t1, v1, t2, v2)
START_WIDTH = 0.1  # standard deviation of a fresh policy, as a share of the interval
WIDTH_RANGE = (0.005, 1.0)


class CodeDistribution(TorchDistribution):
    """Four conditional categoricals over codes, conditioned on one action.

    Args:
        logits: `(..., 4 * 256)`, masked, in the order of an action; those of later draws hold for the action that
            they were computed with.

    `logp` is exact. `entropy` and `kl` are sums along the drawn action, unbiased estimates of the joint ones.
    """

    def _get_torch_distribution(self, logits: torch.Tensor) -> None:
        self._log = torch.log_softmax(logits.unflatten(-1, (4, CODE_COUNT)), -1)
        self._possible = self._log > MASKED / 2

    def logp(self, value: torch.Tensor, **kwargs) -> torch.Tensor:
        return self._log.gather(-1, value.long().unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self, **kwargs) -> torch.Tensor:
        return -(self._log.exp() * torch.where(self._possible, self._log, 0.0)).sum((-1, -2))

    def kl(self, other: CodeDistribution, **kwargs) -> torch.Tensor:
        difference = torch.where(self._possible & other._possible, self._log - other._log, 0.0)
        return (self._log.exp() * difference).sum((-1, -2))

    def sample(self, *, sample_shape=None, **kwargs):
        raise RuntimeError("later draws depend on earlier ones: actions come from CodePolicy, not from here")

    rsample = sample

    @staticmethod
    def required_input_dim(space, **kwargs) -> int:
        return 4 * CODE_COUNT


class CodePolicy(TorchRLModule, ValueFunctionAPI):
    """Policy and value function over the observations of `TAP-v0`.

    `model_config` holds `tmax` and `start`, the layers' limits and the configuration that a fresh policy is centred
    on (both lists, one entry a layer), and `hidden`, the width of the two hidden layers.
    """

    generator: torch.Generator | None = None  # what actions are drawn with; torch's global one if None

    def setup(self) -> None:
        config = self.model_config
        limits = torch.tensor(config["tmax"])
        self.register_buffer("limits", limits)
        self.register_buffer("codes", torch.arange(CODE_COUNT))
        self.register_buffer("start", self._relative(torch.tensor(config["start"]), limits))
        width, features = config["hidden"], self.observation_space.shape[0] + len(limits)
        self.trunk = _perceptron(features, width)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width + drawn, width), nn.Tanh(), nn.Linear(width, 2)) for drawn in range(4)
        )
        for head in self.heads:  # a fresh policy has nearly the start configuration as its mean
            nn.init.normal_(head[-1].weight, std=0.01)
            nn.init.zeros_(head[-1].bias)
        self.value = nn.Sequential(_perceptron(features, width), nn.Linear(width, 1))

    @staticmethod
    def _intervals(drawn: list[torch.Tensor], tmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest code of the next draw, after `drawn` of t1, t2, v1, v2."""
        match drawn:
            case []:
                return torch.ones_like(tmax), tmax - 3
            case [t1]:
                return t1 + 2, tmax - 1
            case [t1, t2]:
                return t1 + 1, t2 - 1
            case [_, t2, _]:
                return t2 + 1, tmax
        raise AssertionError("four codes at most")

    def _relative(self, start: torch.Tensor, tmax: torch.Tensor) -> torch.Tensor:
        """Where in its interval each start code lies, as logits `(layers, 4)` in the order of drawing."""
        drawn, places = [], []
        for column in DRAW_ORDER:
            low, high = self._intervals(drawn, tmax)
            code = start[:, column]
            places.append(((code - low) / (high - low).clamp(min=1)).clamp(0.02, 0.98))
            drawn.append(code)
        return torch.logit(torch.stack(places, -1))

    def _features(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The observation with the layer one-hot behind it, and the layer's index, which its depth gives."""
        count = len(self.limits)
        layer = torch.round(observation[..., 0] * (count - 1)).long()
        return torch.cat([observation, nn.functional.one_hot(layer, count).to(observation)], -1), layer

    def _walk(self, observation: torch.Tensor, pick) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the four draws; `pick(draw, logits)` gives each code.

        Returns:
            Actions `(..., 4) int64` and logits `(..., 4 * 256) float32`, both in the order of an action.
        """
        features, layer = self._features(observation)
        hidden, tmax = self.trunk(features), self.limits[layer]
        drawn: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        for draw, head in enumerate(self.heads):
            low, high = self._intervals(drawn, tmax)
            context = [(code / tmax).to(hidden).unsqueeze(-1) for code in drawn]
            output = head(torch.cat([hidden, *context], -1))
            logits.append(self._logits(output, self.start[layer, draw], low.unsqueeze(-1), high.unsqueeze(-1)))
            drawn.append(pick(draw, logits[-1]))
        columns = [DRAW_ORDER.index(column) for column in range(4)]
        return torch.stack([drawn[k] for k in columns], -1), torch.cat([logits[k] for k in columns], -1)

    def _logits(self, output: torch.Tensor, start: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """The discretised Gaussian over `low..high`, impossible codes masked."""
        mean = torch.sigmoid(output[..., :1] + start.unsqueeze(-1))
        width = (START_WIDTH * torch.exp(output[..., 1:])).clamp(*WIDTH_RANGE)
        place = (self.codes - low) / (high - low).clamp(min=1)
        possible = (self.codes >= low) & (self.codes <= high)
        return torch.where(possible, -0.5 * ((place - mean) / width) ** 2, MASKED)

    # -- what RLlib calls

    def _forward_inference(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        actions, logits = self._walk(batch[Columns.OBS], lambda draw, logits: logits.argmax(-1))
        return {Columns.ACTIONS: actions, Columns.ACTION_DIST_INPUTS: logits}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        def draw_code(draw: int, logits: torch.Tensor) -> torch.Tensor:
            return torch.multinomial(torch.softmax(logits, -1), 1, generator=self.generator).squeeze(-1)

        with torch.no_grad():
            actions, logits = self._walk(batch[Columns.OBS], draw_code)
        return {
            Columns.ACTIONS: actions,
            Columns.ACTION_DIST_INPUTS: logits,
            Columns.ACTION_LOGP: CodeDistribution(logits=logits).logp(actions),
        }

    def _forward_train(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        stored = batch[Columns.ACTIONS].long()
        _, logits = self._walk(batch[Columns.OBS], lambda draw, _: stored[..., DRAW_ORDER[draw]])
        return {Columns.ACTION_DIST_INPUTS: logits}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        return self.value(self._features(batch[Columns.OBS])[0]).squeeze(-1)

    def get_train_action_dist_cls(self) -> type[CodeDistribution]:
        return CodeDistribution

    get_exploration_action_dist_cls = get_inference_action_dist_cls = get_train_action_dist_cls


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
