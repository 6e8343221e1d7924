"""The policy that PPO trains: four or five ordered codes for a layer, each stays at the incumbent's or moves.

The incumbent is the best configuration so far; at first quintile. For each code the network says with which chance it
stays, and how it moves otherwise: a Gaussian of the displacement, discretised and truncated to the interval that the
earlier codes leave open. So an episode changes some codes a little, and what it earned tells about those. Without
training a policy is a hill climber.

t1 is drawn first, then t2 given t1, then v1 and v2 between and above them, so that every action is valid by
construction. Where tmax is searched, it is drawn before them all, and they keep their shares of it.

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
MOVES = 12.0  # codes of an episode that a fresh policy moves, on average
MOVES_RANGE = (0.5, 2.0)  # how many times as many a trained policy moves: it can neither freeze nor draw all anew
LIKELIEST = 0.45  # highest chance that a code moves: below a half, so that the median of every draw is to stay
WIDTH = 0.02  # standard deviation of a fresh policy's moves, as a share of the layer's tmax
WIDTH_RANGE = (0.01, 0.5)
REACH = 0.12  # farthest mean of a move, as a share of tmax
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

    `model_config` holds one entry a layer of `tmax`, of `start`, the first incumbent, and of `observations`, what the
    environment shows (all lists); and `hidden`, the width of the two hidden layers. Where `start` has five codes a
    layer, tmax is drawn.
    """

    def setup(self) -> None:
        config = self.model_config
        limits = torch.tensor(config["tmax"])
        self.draws = len(config["start"][0])
        self.register_buffer("limits", limits)
        self.register_buffer("codes", torch.arange(CODE_COUNT if self._draws_tmax else max(config["tmax"]) + 1))
        self.register_buffer("observations", torch.tensor(config["observations"], dtype=torch.float32))
        self.register_buffer("incumbent", torch.tensor(config["start"])[:, self._order])
        self._stays = [_stay(share * MOVES / self.incumbent.numel()) for share in (1.0, *MOVES_RANGE)]
        width, features = config["hidden"], self.observation_space.shape[0] + len(limits)
        self.trunk = _perceptron(features, width)
        self.heads = _Heads(width, self.draws)
        self.value = nn.Sequential(_perceptron(features, width), nn.Linear(width, 1))

    def centre(self, actions: torch.Tensor) -> None:
        """Makes a configuration the incumbent: actions `(layers, draws)`, valid ones."""
        self.incumbent.copy_(actions[:, self._order])

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

    def _places(self, layer: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The incumbent's codes `(..., draws)`, under a drawn tmax as large shares of it, and the unit of moves."""
        own, tmax = self.incumbent[layer], self.limits[layer].unsqueeze(-1).expand(drawn.shape)
        if not self._draws_tmax:
            return own, tmax
        moved = drawn[..., :1].clamp(min=1)  # not drawn yet: nobody looks at the rest
        scaled = (own[..., 1:] * moved / own[..., :1]).round().long()
        return torch.cat([own[..., :1], scaled], -1), torch.cat([tmax[..., :1], moved.expand_as(scaled)], -1)

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
        """The distributions of some draws over their intervals, impossible codes masked: `(..., draws, codes)`.

        Args:
            hidden: of the trunk, `(..., width)`.
            layer: index `(...)`.
            drawn: codes `(..., draws)` in the order of drawing; those that a draw does not know yet do not matter to
                it.
            draws: which of them.
        """
        tmax = self.limits[layer]
        low, high = (end[..., draws].unsqueeze(-1) for end in self._intervals(drawn, tmax))
        own, unit = (part[..., draws].unsqueeze(-1) for part in self._places(layer, drawn))
        output = self.heads(hidden, self._shares(drawn, tmax), draws)
        mean, width = REACH * torch.tanh(output[..., :1]), (WIDTH * torch.exp(output[..., 1:2])).clamp(*WIDTH_RANGE)
        usual, most, least = self._stays  # few moves are long stays
        stay = (usual + output[..., 2:]).clamp(least, most)
        possible, here = (self.codes >= low) & (self.codes <= high), self.codes == own
        gaussian = -0.5 * (((self.codes - own) / unit - mean) / width) ** 2
        moves = torch.log_softmax(torch.where(possible & ~here, gaussian, MASKED), -1)
        logits = torch.where(here, nn.functional.logsigmoid(stay), moves + nn.functional.logsigmoid(-stay))
        return torch.where(possible, logits, MASKED)

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
        # A fresh policy moves all codes with nearly the same chance, up as often as down.
        self.weight, self.bias = nn.Parameter(0.01 * torch.randn(draws, width, 3)), nn.Parameter(torch.zeros(draws, 3))
        self.register_buffer("known", torch.ones(draws, draws - 1).tril(-1))  # which draw knows which codes

    def forward(self, hidden: torch.Tensor, drawn: torch.Tensor, draws: slice) -> torch.Tensor:
        """Mean, width and stay, untransformed: `(..., width)` and `CodePolicy._shares` -> `(..., draws, 3)`."""
        known = drawn[..., :-1].unsqueeze(-2) * self.known[draws]
        seen = torch.cat([hidden.unsqueeze(-2).expand(*known.shape[:-1], -1), known], -1)
        layer = torch.einsum("...di,dio->...do", seen, self.hidden_weight[draws]) + self.hidden_bias[draws]
        return torch.einsum("...di,dio->...do", torch.tanh(layer), self.weight[draws]) + self.bias[draws]


def _stay(chance: float) -> float:
    """The logit of staying where a code moves with this chance, at most `LIKELIEST`."""
    chance = min(chance, LIKELIEST)
    return math.log((1 - chance) / chance)


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
