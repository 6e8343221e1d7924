"""The policy that PPO trains: four ordered codes for a layer, each drawn from a masked distribution.

t1 is drawn first, then t2 given t1, then v1 and v2 between and above them, so that every action is valid by
construction. Each draw is a Gaussian, discretised and truncated to the interval that the earlier codes leave open:
two numbers from the network, mean and width as shares of the interval. A fresh policy has the quintile configuration
as its mean.

For training the distribution is conditioned on the stored action and never drawn again, so that the probability
ratio is exactly 1 on unchanged weights.
"""

from __future__ import annotations

import math
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
        logits: `(..., 4 * codes)`, masked, in the order of an action; those of later draws hold for the action that
            they were computed with.

    `logp` is exact. `entropy` and `kl` are sums along the drawn action, unbiased estimates of the joint ones.
    """

    def _get_torch_distribution(self, logits: torch.Tensor) -> None:
        self._log = torch.log_softmax(logits.unflatten(-1, (4, -1)), -1)
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
    on (both lists, one entry a layer), `hidden`, the width of the two hidden layers, and perhaps `observations`, what
    the environment shows of each layer.
    """

    # Numbers in [0, 1) that actions are drawn with, (layers, episodes in lockstep, 4); torch's global stream if None.
    uniforms: torch.Tensor | None = None

    def setup(self) -> None:
        config = self.model_config
        limits = torch.tensor(config["tmax"])
        self.register_buffer("limits", limits)
        self.register_buffer("codes", torch.arange(max(config["tmax"]) + 1))
        self.register_buffer("observations", torch.tensor(config.get("observations", []), dtype=torch.float32))
        start = torch.tensor(config["start"])[:, list(DRAW_ORDER)]
        low, high = self._intervals(start, limits)
        places = ((start - low) / (high - low).clamp(min=1)).clamp(0.02, 0.98)
        self.register_buffer("start", torch.logit(places))  # (layers, 4): where in its interval each start code lies
        width, features = config["hidden"], self.observation_space.shape[0] + len(limits)
        self.trunk = _perceptron(features, width)
        self.heads = _Heads(width)
        self.value = nn.Sequential(_perceptron(features, width), nn.Linear(width, 1))
        self._drawn: dict[str, torch.Tensor] | None = None  # for every layer of the episodes under way

    @staticmethod
    def _intervals(drawn: torch.Tensor, tmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest code `(..., 4)` of t1, t2, v1, v2, each from those before it in `drawn (..., 4)`."""
        t1, t2, _, _ = drawn.unbind(-1)
        low = torch.stack([torch.ones_like(t1), t1 + 2, t1 + 1, t2 + 1], -1)
        return low, torch.stack([tmax - 3, tmax - 1, t2 - 1, tmax], -1)

    def _features(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The observation with the layer one-hot behind it, and the layer's index, which its depth gives."""
        count = len(self.limits)
        layer = torch.round(observation[..., 0] * (count - 1)).long()
        return torch.cat([observation, nn.functional.one_hot(layer, count).to(observation)], -1), layer

    def _logits(
        self, hidden: torch.Tensor, layer: torch.Tensor, drawn: torch.Tensor, draws: slice = slice(None)
    ) -> torch.Tensor:
        """The discretised Gaussians of some draws over their intervals, impossible codes masked: `(..., draws, codes)`.

        Args:
            hidden: of the trunk, `(..., width)`.
            layer: index `(...)`.
            drawn: codes `(..., 4)` in the order of drawing; those that a draw does not know yet do not matter to it.
            draws: which of the four.
        """
        tmax = self.limits[layer]
        low, high = (end[..., draws].unsqueeze(-1) for end in self._intervals(drawn, tmax))
        output = self.heads(hidden, drawn / tmax.unsqueeze(-1), draws)
        mean = torch.sigmoid(output[..., :1] + self.start[layer][..., draws].unsqueeze(-1))
        width = (START_WIDTH * torch.exp(output[..., 1:])).clamp(*WIDTH_RANGE)
        place = (self.codes - low) / (high - low).clamp(min=1)
        possible = (self.codes >= low) & (self.codes <= high)
        return torch.where(possible, -0.5 * ((place - mean) / width) ** 2, MASKED)

    def _walk(self, observation: torch.Tensor, pick) -> torch.Tensor:
        """Runs the four draws; `pick(logits)` gives each code. Returns actions `(..., 4) int64`."""
        features, layer = self._features(observation)
        hidden = self.trunk(features)
        drawn = layer.new_zeros((*layer.shape, 4))
        for draw in range(4):
            drawn[..., draw] = pick(self._logits(hidden, layer, drawn, slice(draw, draw + 1)).squeeze(-2))
        return drawn[..., list(DRAW_ORDER)]

    def _inputs(self, observation: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Logits `(..., 4 * codes)` in the order of an action, given that these actions were drawn."""
        features, layer = self._features(observation)
        logits = self._logits(self.trunk(features), layer, actions[..., list(DRAW_ORDER)])
        return logits[..., list(DRAW_ORDER), :].flatten(-2)

    # -- what RLlib calls

    def _forward_inference(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        observation = batch[Columns.OBS]
        actions = self._walk(observation, lambda logits: logits.argmax(-1))
        return {Columns.ACTIONS: actions, Columns.ACTION_DIST_INPUTS: self._inputs(observation, actions)}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        """Draws actions.

        What is observed of a layer does not depend on actions. So at the first layer the actions for all layers are
        drawn in one batch; the later layers' are taken from there.
        """
        observation = batch[Columns.OBS]
        layers, at = self.observations, int(torch.round(observation[0, 0] * (len(self.limits) - 1)))
        if not (len(layers) and torch.equal(observation, layers[at].expand_as(observation))):
            return self._draw(observation, torch.rand(*observation.shape[:-1], 4))
        if at == 0:
            everywhere = layers.unsqueeze(1).expand(-1, len(observation), -1)
            uniforms = torch.rand(*everywhere.shape[:-1], 4) if self.uniforms is None else self.uniforms
            self._drawn = self._draw(everywhere, uniforms)
        if self._drawn is None or self._drawn[Columns.ACTIONS].shape[1] != len(observation):
            return self._draw(observation, torch.rand(*observation.shape[:-1], 4))
        return {name: value[at] for name, value in self._drawn.items()}

    def _draw(self, observation: torch.Tensor, uniforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Draws actions by inversion: an episode's depend on its own `uniforms (..., 4)` alone."""
        numbers = iter(uniforms.to(observation.device).double().unbind(-1))

        def draw_code(logits: torch.Tensor) -> torch.Tensor:
            below = torch.softmax(logits.double(), -1).cumsum(-1)
            wanted = next(numbers).unsqueeze(-1) * below[..., -1:]  # less than the last, so that a code is found
            return torch.searchsorted(below, wanted, right=True).squeeze(-1)

        with torch.no_grad():
            actions = self._walk(observation, draw_code)
            logits = self._inputs(observation, actions)
        return {
            Columns.ACTIONS: actions,
            Columns.ACTION_DIST_INPUTS: logits,
            Columns.ACTION_LOGP: CodeDistribution(logits=logits).logp(actions),
        }

    def _forward_train(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self._inputs(batch[Columns.OBS], batch[Columns.ACTIONS].long())}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        return self.value(self._features(batch[Columns.OBS])[0]).squeeze(-1)

    def get_train_action_dist_cls(self) -> type[CodeDistribution]:
        return CodeDistribution

    get_exploration_action_dist_cls = get_inference_action_dist_cls = get_train_action_dist_cls


class _Heads(nn.Module):
    """A small network for each draw, which sees the trunk and the codes drawn before; all four run as one."""

    def __init__(self, width: int):
        super().__init__()
        spread = [1 / math.sqrt(width + draw) for draw in range(4)]  # as nn.Linear has it
        self.hidden_weight = nn.Parameter(torch.stack([torch.empty(width + 3, width).uniform_(-s, s) for s in spread]))
        self.hidden_bias = nn.Parameter(torch.stack([torch.empty(width).uniform_(-s, s) for s in spread]))
        # A fresh policy has nearly the start configuration as its mean.
        self.weight, self.bias = nn.Parameter(0.01 * torch.randn(4, width, 2)), nn.Parameter(torch.zeros(4, 2))
        self.register_buffer("known", torch.ones(4, 3).tril(-1))  # which draw knows which codes

    def forward(self, hidden: torch.Tensor, drawn: torch.Tensor, draws: slice) -> torch.Tensor:
        """Mean and width, untransformed: `(..., width)` and shares of tmax `(..., 4)` -> `(..., draws, 2)`."""
        known = drawn[..., :3].unsqueeze(-2) * self.known[draws]
        seen = torch.cat([hidden.unsqueeze(-2).expand(*known.shape[:-1], -1), known], -1)
        layer = torch.einsum("...di,dio->...do", seen, self.hidden_weight[draws]) + self.hidden_bias[draws]
        return torch.einsum("...di,dio->...do", torch.tanh(layer), self.weight[draws]) + self.bias[draws]


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
