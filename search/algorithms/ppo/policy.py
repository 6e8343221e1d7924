"""The policy that PPO trains: four or five ordered codes for a layer, each drawn from a masked distribution.

t1 is drawn first, then t2 given t1, then v1 and v2 between and above them, so that every action is valid by
construction. Where tmax is searched, it is drawn before them all, and they keep their shares of it. Each draw is a
Gaussian, discretised and truncated to the interval that the earlier codes leave open: two numbers from the network,
mean and width as shares of the interval. A fresh policy has the quintile configuration as its mean.

What is observed of a layer does not depend on actions. So one call of `CodePolicy.draw` draws whole episodes: the
actions of all layers at once.

For training the distribution is conditioned on the stored action and never drawn again, so that the probability
ratio is exactly 1 on unchanged weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDistribution
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import nn

from approx_env.tap import CODE_COUNT, HIGHEST_CODE, LOWEST_TMAX

MASKED = -1e9  # logit of an impossible code: finite, so that no gradient is NaN
DRAW_ORDERS = {4: (0, 2, 1, 3), 5: (4, 0, 2, 1, 3)}  # (tmax,) t1, t2, v1, v2 as columns of an action
START_WIDTH = 0.1  # standard deviation of a fresh policy, as a share of the interval; of tmax as a share of tmax
WIDTH_RANGE = (0.005, 1.0)
LAYER = "layer"  # column of a batch: the index of the layer that a step is about, `(...) int64`


class CodeDistribution(TorchDistribution):
    """`draws` conditional categoricals over codes, conditioned on one action.

    Args:
        logits: `(..., draws * codes)`, masked, in the order of an action; those of later draws hold for the action that
            they were computed with.

    `logp` is exact. `entropy` and `kl` are sums along the drawn action, unbiased estimates of the joint ones.
    """

    draws = 4

    def _get_torch_distribution(self, logits: torch.Tensor) -> None:
        self._log = torch.log_softmax(logits.unflatten(-1, (self.draws, -1)), -1)
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
        return len(space.nvec) * CODE_COUNT


class CodeDistributionWithTmax(CodeDistribution):
    """The same where tmax is drawn, too."""

    draws = 5


class CodePolicy(TorchRLModule, ValueFunctionAPI):
    """Policy and value function over the observations of `TAP-v0`, each with its layer's index in the column `LAYER`.

    `model_config` holds one entry a layer of `tmax`, of `start`, the configuration that a fresh policy is centred on,
    and of `observations`, what the environment shows (all lists); and `hidden`, the width of the two hidden layers.
    Where `start` has five codes a layer, tmax is drawn.
    """

    def setup(self) -> None:
        config = self.model_config
        limits = torch.tensor(config["tmax"])
        self.draws = len(config["start"][0])
        self.register_buffer("limits", limits)
        self.register_buffer("codes", torch.arange(CODE_COUNT if self._draws_tmax else max(config["tmax"]) + 1))
        self.register_buffer("observations", torch.tensor(config["observations"], dtype=torch.float32))
        start = torch.tensor(config["start"])[:, self._order]
        low, high = self._intervals(start, limits)
        places = ((start - low) / (high - low).clamp(min=1)).clamp(0.02, 0.98)
        # (layers, draws): where in its interval each start code lies, and how wide a fresh policy's Gaussian is.
        self.register_buffer("start", torch.logit(places))
        widths = torch.full(places.shape, START_WIDTH)
        if self._draws_tmax:
            widths[:, 0] *= limits / (high - low)[:, 0]
        self.register_buffer("widths", widths, persistent=False)
        width, features = config["hidden"], self.observation_space.shape[0] + len(limits)
        self.trunk = _perceptron(features, width)
        self.heads = _Heads(width, self.draws)
        self.value = nn.Sequential(_perceptron(features, width), nn.Linear(width, 1))

    @property
    def _draws_tmax(self) -> bool:
        return self.draws == 5

    @property
    def _order(self) -> list[int]:
        """The columns of an action in the order of drawing."""
        return list(DRAW_ORDERS[self.draws])

    @property
    def _inverse(self) -> list[int]:
        """The draws in the order of an action."""
        return [self._order.index(column) for column in range(self.draws)]

    def _intervals(self, drawn: torch.Tensor, tmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest code `(..., draws)`, each from those before it in `drawn (..., draws)`.

        Args:
            tmax: of the layer, where it is not drawn.
        """
        first = ()
        if self._draws_tmax:
            tmax, drawn = drawn[..., 0], drawn[..., 1:]
            first = torch.full_like(tmax, LOWEST_TMAX), torch.full_like(tmax, HIGHEST_CODE)
        t1, t2, _, _ = drawn.unbind(-1)
        low = torch.stack([*first[:1], torch.ones_like(t1), t1 + 2, t1 + 1, t2 + 1], -1)
        return low, torch.stack([*first[1:], tmax - 3, tmax - 1, t2 - 1, tmax], -1)

    def _shares(self, drawn: torch.Tensor, tmax: torch.Tensor) -> torch.Tensor:
        """Codes `(..., draws)` as shares of tmax, and a drawn tmax of the highest code."""
        if not self._draws_tmax:
            return drawn / tmax.unsqueeze(-1)
        own = drawn[..., :1].clamp(min=1)  # not drawn yet: nobody looks at the shares
        return torch.cat([drawn[..., :1] / HIGHEST_CODE, drawn[..., 1:] / own], -1)

    def draw(self, uniforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Draws episodes by inversion: each depends on the weights and on its own numbers alone.

        Args:
            uniforms: numbers in [0, 1) `(layers, episodes, draws) float32`.

        Returns:
            Columns as RLlib names them, `(layers, episodes, ...)`: actions, their log-probabilities, the inputs of
            their distributions, and layers.
        """
        numbers = iter(uniforms.to(self.observations.device).double().unbind(-1))

        def draw_code(logits: torch.Tensor) -> torch.Tensor:
            below = torch.softmax(logits.double(), -1).cumsum(-1)
            wanted = next(numbers).unsqueeze(-1) * below[..., -1:]  # less than the last, so that a code is found
            return torch.searchsorted(below, wanted, right=True).squeeze(-1)

        episodes = uniforms.shape[1]
        observation = self.observations.unsqueeze(1).expand(-1, episodes, -1)
        layer = torch.arange(len(self.limits), device=observation.device).unsqueeze(1).expand(-1, episodes)
        with torch.no_grad():
            actions = self._walk(observation, layer, draw_code)
            logits = self._inputs(observation, layer, actions)
        return {
            Columns.ACTIONS: actions,
            Columns.ACTION_DIST_INPUTS: logits,
            Columns.ACTION_LOGP: self.get_train_action_dist_cls()(logits=logits).logp(actions),
            LAYER: layer,
        }

    def _features(self, observation: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """The observation with the layer one-hot behind it."""
        one_hot = nn.functional.one_hot(layer, len(self.limits))
        return torch.cat([observation, one_hot.to(observation)], -1)

    def _logits(
        self, hidden: torch.Tensor, layer: torch.Tensor, drawn: torch.Tensor, draws: slice = slice(None)
    ) -> torch.Tensor:
        """The discretised Gaussians of some draws over their intervals, impossible codes masked: `(..., draws, codes)`.

        Args:
            hidden: of the trunk, `(..., width)`.
            layer: index `(...)`.
            drawn: codes `(..., draws)` in the order of drawing; those that a draw does not know yet do not matter to
                it.
            draws: which of them.
        """
        tmax = self.limits[layer]
        low, high = (end[..., draws].unsqueeze(-1) for end in self._intervals(drawn, tmax))
        output = self.heads(hidden, self._shares(drawn, tmax), draws)
        mean = torch.sigmoid(output[..., :1] + self.start[layer][..., draws].unsqueeze(-1))
        width = (self.widths[layer][..., draws].unsqueeze(-1) * torch.exp(output[..., 1:])).clamp(*WIDTH_RANGE)
        place = (self.codes - low) / (high - low).clamp(min=1)
        possible = (self.codes >= low) & (self.codes <= high)
        return torch.where(possible, -0.5 * ((place - mean) / width) ** 2, MASKED)

    def _walk(self, observation: torch.Tensor, layer: torch.Tensor, pick: Callable) -> torch.Tensor:
        """Runs the draws; `pick(logits)` gives each code. Returns actions `(..., draws) int64`."""
        hidden = self.trunk(self._features(observation, layer))
        drawn = layer.new_zeros((*layer.shape, self.draws))
        for draw in range(self.draws):
            drawn[..., draw] = pick(self._logits(hidden, layer, drawn, slice(draw, draw + 1)).squeeze(-2))
        return drawn[..., self._inverse]

    def _inputs(self, observation: torch.Tensor, layer: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Logits `(..., draws * codes)` in the order of an action, given that these actions were drawn."""
        hidden = self.trunk(self._features(observation, layer))
        return self._logits(hidden, layer, actions[..., self._order])[..., self._inverse, :].flatten(-2)

    # -- what RLlib calls

    def _forward_train(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        inputs = self._inputs(batch[Columns.OBS], batch[LAYER].long(), batch[Columns.ACTIONS].long())
        return {Columns.ACTION_DIST_INPUTS: inputs}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        return self.value(self._features(batch[Columns.OBS], batch[LAYER].long())).squeeze(-1)

    def get_train_action_dist_cls(self) -> type[CodeDistribution]:
        return CodeDistributionWithTmax if self._draws_tmax else CodeDistribution

    get_exploration_action_dist_cls = get_inference_action_dist_cls = get_train_action_dist_cls


class _Heads(nn.Module):
    """A small network for each draw, which sees the trunk and the codes drawn before; all run as one."""

    def __init__(self, width: int, draws: int):
        super().__init__()
        spread = [1 / math.sqrt(width + draw) for draw in range(draws)]  # as nn.Linear has it
        shape = width + draws - 1, width
        self.hidden_weight = nn.Parameter(torch.stack([torch.empty(shape).uniform_(-s, s) for s in spread]))
        self.hidden_bias = nn.Parameter(torch.stack([torch.empty(width).uniform_(-s, s) for s in spread]))
        # A fresh policy has nearly the start configuration as its mean.
        self.weight, self.bias = nn.Parameter(0.01 * torch.randn(draws, width, 2)), nn.Parameter(torch.zeros(draws, 2))
        self.register_buffer("known", torch.ones(draws, draws - 1).tril(-1))  # which draw knows which codes

    def forward(self, hidden: torch.Tensor, drawn: torch.Tensor, draws: slice) -> torch.Tensor:
        """Mean and width, untransformed: `(..., width)` and `CodePolicy._shares` -> `(..., draws, 2)`."""
        known = drawn[..., :-1].unsqueeze(-2) * self.known[draws]
        seen = torch.cat([hidden.unsqueeze(-2).expand(*known.shape[:-1], -1), known], -1)
        layer = torch.einsum("...di,dio->...do", seen, self.hidden_weight[draws]) + self.hidden_bias[draws]
        return torch.einsum("...di,dio->...do", torch.tanh(layer), self.weight[draws]) + self.bias[draws]


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
