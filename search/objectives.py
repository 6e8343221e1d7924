"""What a search is after: objectives by name, and how configurations compare under them and under a budget.

A new objective is one entry of `OBJECTIVES`: how the return is made, which algorithms maximise and rows keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from approx_env.scoring.reward import Reward


@dataclass(frozen=True)
class Score:
    """What an algorithm is told of a configuration.

    >>> Score((0.9,)).key > Score((0.8,)).key > Score((0.95,), excess=0.01).key
    True
    """

    objectives: tuple[float, ...]  # to maximise: (return,), or of a front (return, -share of exact multiplications)
    excess: float = 0.0  # share of exact multiplications above the budget, in [0, 1]; 0: the budget is kept

    @property
    def key(self) -> tuple[float, float]:
        """The larger, the better: what keeps the budget comes first, by its return; the rest by how little it exceeds.

        Source: Deb, CMAME 186 (2000), section 3 (feasibility first, no penalty weights).
        """
        return -self.excess, self.objectives[0]

    def dominates(self, other: Score) -> bool:
        """Whether this is nearer to the budget, or as near, nowhere worse and somewhere better.

        Source: Deb et al., IEEE TEC 6(2), 2002 (NSGA-II), definition 1.
        """
        if self.excess != other.excess:
            return self.excess < other.excess
        pairs = list(zip(self.objectives, other.objectives, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@dataclass(frozen=True)
class Objective:
    """What `--objective` names."""

    reward: Callable[[Any], Reward]  # how the command's settings make a return
    front: bool = False  # whether the share of exact multiplications is a second objective
    unread: tuple[str, ...] = ()  # settings that make no difference to it

    def score(self, outcome: Mapping[str, Any], budget: float | None) -> Score:
        """What an algorithm is told.

        Args:
            outcome: the environment's last `info`, or a row; `mac_exact_all` is asked for only where it counts.
            budget: highest share of all multiplications that may stay exact, in [0, 1]; None: any.
        """
        return_, over = float(outcome["return"]), excess(outcome, budget)
        return Score((return_, -float(outcome["mac_exact_all"])) if self.front else (return_,), over)


def _mission(settings: Any) -> Reward:
    """accuracy - kd_weight * KD - at_weight * AT."""
    return Reward(settings.accuracy, settings.kd_temperature, settings.kd_weight, settings.at_weight)


def _distillation(settings: Any) -> Reward:
    """-kd_weight * KD - at_weight * AT: labels play no part."""
    return Reward("none", settings.kd_temperature, settings.kd_weight, settings.at_weight)


def _kd(settings: Any) -> Reward:
    """-KD."""
    return Reward("none", settings.kd_temperature, 1.0, 0.0)


OBJECTIVES = {
    "return": Objective(_mission),
    "kd": Objective(_kd, unread=("accuracy", "kd_weight", "at_weight")),
    "kd+at": Objective(_distillation, unread=("accuracy",)),
    "pareto": Objective(_mission, front=True),
}


def method(arguments: Mapping[str, Any]) -> str:
    """How a run searched, and for what, as in 'hill, kd'.

    Args:
        arguments: of its run.json.
    """
    return arguments["algorithm"] + aim(arguments)


def aim(arguments: Mapping[str, Any]) -> str:
    """What a run is after beside the return, as outputs say it; empty if nothing.

    Args:
        arguments: the settings by name; older runs lack some.

    >>> aim({"objective": "pareto", "search_tmax": True, "budget_exact": 0.25})
    ', pareto, tmax searched, at most 0.25 of all multiplications exact'
    """
    objective, budget = arguments.get("objective", "return"), arguments.get("budget_exact")
    parts = ["" if objective == "return" else objective, "tmax searched" if arguments.get("search_tmax") else "",
             "" if budget is None else f"at most {budget:.4g} of all multiplications exact"]  # fmt: skip
    return "".join(f", {part}" for part in parts if part)


def excess(outcome: Mapping[str, Any], budget: float | None) -> float:
    """By how much the share of all multiplications that stay exact is above the budget; 0 within it."""
    return 0.0 if budget is None else max(0.0, float(outcome["mac_exact_all"]) - budget)


def values(scores: Sequence[Score]) -> list[float]:
    """One number for each score, to maximise, for algorithms that need numbers: in the order of their keys.

    It is the return within the budget. Beyond it is the lowest return that kept the budget (of these scores; the
    lowest of all if none did) minus the excess. Without a budget these are the returns.

    Source: Deb, CMAME 186 (2000), equation 4, with signs turned.

    >>> values([Score((0.75,)), Score((0.5,)), Score((0.9,), excess=0.25)])
    [0.75, 0.5, 0.25]
    """
    returns = [score.objectives[0] for score in scores]
    kept = [return_ for return_, score in zip(returns, scores, strict=True) if not score.excess]
    floor = min(kept or returns, default=0.0)
    return [floor - s.excess if s.excess else return_ for return_, s in zip(returns, scores, strict=True)]
