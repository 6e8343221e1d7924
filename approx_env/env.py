"""The search problem as a Gymnasium environment, registered as `TAP-v0`."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np

from approx_env import data, tap
from approx_env.engines.vector import convolution
from approx_env.int8.sites import with_sites
from approx_env.scoring import calibration
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward, Score
from approx_env.teachers import store

CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 16, 32


class CodeSpace(gym.spaces.MultiDiscrete):
    """`MultiDiscrete([256] * 4)` whose `sample()` gives codes `(t1, v1, t2, v2)` that are valid under `tmax`.

    With `search_tmax` it is `MultiDiscrete([256] * 5)`, and a sample has a tmax of its own.
    """

    def __init__(self, tmax: int, search_tmax: bool = False, seed: int | np.random.Generator | None = None):
        super().__init__([tap.CODE_COUNT] * len(tap.WITH_TMAX if search_tmax else tap.CODES), seed=seed)
        self.tmax, self.search_tmax = tmax, search_tmax

    def draw(self, generator: np.random.Generator) -> tuple[int, ...]:
        """Draws one of the valid actions, each with the same probability."""
        return tap.random_codes_with_tmax(generator) if self.search_tmax else tap.random_codes(self.tmax, generator)

    def sample(self, mask=None, probability=None) -> np.ndarray:
        """Draws one of the valid actions, each with the same probability; takes no mask."""
        if mask is not None or probability is not None:
            raise ValueError("CodeSpace.sample() takes no mask: it draws valid codes by itself")
        return np.array(self.draw(self.np_random), self.dtype)


class BatchedCodeSpace(gym.spaces.Box):
    """Codes `(n, 4)`, or `(n, 5)`, for `n` environments in lockstep; `sample()` gives codes that are valid for all.

    Args:
        space: of one of them. Its tmax, whenever a sample is drawn, is that of the layer that comes next.
    """

    def __init__(self, space: CodeSpace, n: int):
        shape = (n, *space.shape)
        # As Gymnasium does, the batch begins with a copy of the single space's random stream.
        super().__init__(0, tap.CODE_COUNT - 1, shape, space.dtype, seed=deepcopy(space.np_random))
        self._space = space

    def sample(self, mask=None, probability=None) -> np.ndarray:
        """Draws one of the valid actions for each environment; takes no mask."""
        if mask is not None or probability is not None:
            raise ValueError("BatchedCodeSpace.sample() takes no mask: it draws valid codes by itself")
        return np.array([self._space.draw(self.np_random) for _ in range(len(self.low))], self.dtype)


@gym.vector.utils.batch_space.register(CodeSpace)
def _batch(space: CodeSpace, n: int = 1) -> BatchedCodeSpace:
    return BatchedCodeSpace(space, n)


class TapEnv(gym.Env):
    """
    ## Description
    One episode is one TAP configuration of an INT8 network: step i sets the four codes of approximated layer i, and
    the forward pass of the search images advances to the next layer.

    ## Action Space
    `MultiDiscrete([256] * 4)`: `(t1, v1, t2, v2)` with `1 <= t1 < v1 < t2 < v2 <= tmax`, the layer's tmax being in
    `info["tmax"]`. Invalid codes raise `ValueError`; they are never repaired. `action_space.sample()` gives valid
    codes for the layer that comes next. Where tmax is searched it is `MultiDiscrete([256] * 5)`: an action's last code
    is its tmax, `v2 <= tmax <= 255`, and `info["tmax"]` is what calibration says.

    ## Observation Space
    `Box(0, 1, (4,), float32)`: `[i / (L - 1), mean / 255, std / 128, p90 / 255]` of the calibration histogram of the
    layer that comes next, over all codes. It does not depend on the actions. After the last step it is the last
    layer's again.

    ## Rewards
    Minus the weighted attention-transfer term at an attention layer; in the last step also accuracy minus the
    weighted KD loss. The sum is the evaluator's return of the configuration, exactly.

    ## Starting State
    The first layer, always: `reset()` has nothing to draw.

    ## Episode End
    Terminates when every layer has its codes. Never truncates.

    ## Information
    Every `info` has `tmax` of the layer that comes next. The last one has `codes (L, 4) int64` (or `(L, 5)`),
    `accuracy`, `soft_accuracy`, `drop_points`, `kd`, `at`, `return`, the cost shares `layer_shares (L, 4)`,
    `shares (4,)`, and the other fields of `Score`.

    ## Arguments
    `evaluator` is the problem; without one it is that of `model`'s shipped digits teacher and 256 search images, on
    `engine` ('vector' or 'portable'; by default the fast one that this CPU can run), with `sites` 'standard' or 'all',
    and `search_tmax` or without. An evaluator's calibration says whether tmax is searched.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        evaluator: Evaluator | None = None,
        *,
        model: str = "squeezenet",
        engine: str | None = None,
        sites: str = "standard",
        search_tmax: bool = False,
    ):
        self.evaluator = shipped_evaluator(model, engine, sites, search_tmax) if evaluator is None else evaluator
        self._layers = self.evaluator.calibration.layers
        self.observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = CodeSpace(self._layers[0].tmax, self.evaluator.calibration.search_tmax)
        self._codes: list[list[int]] = []
        self._evaluation = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._codes = []
        self._evaluation = self.evaluator.begin()
        return self._observe(0)

    def step(self, action):
        if self._evaluation is None or self._evaluation.scores:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is under way")
        codes = _checked(action, self.action_space)
        (reward,) = self._evaluation.advance(codes[None])
        self._codes.append(codes.tolist())
        score = self._evaluation.scores[0] if self._evaluation.scores else None
        observation, info = self._observe(min(self._evaluation.layer, len(self._layers) - 1))
        if score is not None:
            info |= outcome(self._codes, score)
        return observation, reward, score is not None, False, info

    def _observe(self, layer: int):
        self.action_space.tmax = self._layers[layer].tmax
        return self._layers[layer].observation.copy(), {"tmax": self._layers[layer].tmax}


class TapVectorEnv(gym.vector.VectorEnv):
    """`num_envs` episodes of `TapEnv` in lockstep, row by row the same as that many on their own.

    All end in the same step; the one after it begins anew and takes no actions (`AutoresetMode.NEXT_STEP`). On a GPU
    lockstep makes large batches. On a CPU core it only shares the policy's inference, and holds `num_envs` times the
    codes: one is usually best there.

    Args:
        num_envs: configurations in lockstep.
        evaluator, model, engine, sites, search_tmax: as `TapEnv` takes them.
    """

    metadata = {"render_modes": [], "autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        evaluator: Evaluator | None = None,
        *,
        model: str = "squeezenet",
        engine: str | None = None,
        sites: str = "standard",
        search_tmax: bool = False,
    ):
        alone = TapEnv(evaluator, model=model, engine=engine, sites=sites, search_tmax=search_tmax)
        self.num_envs, self.evaluator = num_envs, alone.evaluator
        self.single_observation_space, self.single_action_space = alone.observation_space, alone.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self._layers = self.evaluator.calibration.layers
        self._codes: list[np.ndarray] = []
        self._evaluation = None

    def reset(self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed if isinstance(seed, int) else None, options=options)
        self._codes = []
        self._evaluation = self.evaluator.begin(self.num_envs)
        return self._observe(0)

    def expect(self, actions: np.ndarray) -> None:
        """Scores what the next episodes will be, `(layers, num_envs, 4 or 5)`: their steps only repeat it then.

        A few images go through all layers at a time, and find their codes in the caches. It changes no result. The
        episodes that are under way end.

        Raises:
            ValueError: invalid codes.
        """
        self._evaluation = None  # whose states would take as much memory again
        self.evaluator.begin(self.num_envs).complete([_checked(each, self.action_space) for each in actions])

    def step(self, actions):
        if self._evaluation is None:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is under way")
        ended = np.zeros(self.num_envs, bool)
        if self._evaluation.scores:
            observation, infos = self.reset()
            return observation, np.zeros(self.num_envs), ended, ended.copy(), infos
        codes = _checked(actions, self.action_space)
        rewards = self._evaluation.advance(codes)
        self._codes.append(codes)
        observation, infos = self._observe(min(self._evaluation.layer, len(self._layers) - 1))
        scores = self._evaluation.scores
        if scores:
            ended[:] = True
            for k, (score, configuration) in enumerate(zip(scores, np.stack(self._codes, 1), strict=True)):
                infos = self._add_info(infos, outcome(configuration, score), k)
        return observation, np.array(rewards), ended, np.zeros(self.num_envs, bool), infos

    def _observe(self, layer: int):
        self.single_action_space.tmax = tmax = self._layers[layer].tmax
        infos: dict[str, Any] = {}
        for k in range(self.num_envs):
            infos = self._add_info(infos, {"tmax": tmax}, k)
        return np.tile(self._layers[layer].observation, (self.num_envs, 1)), infos


def _checked(actions: Any, space: gym.Space) -> np.ndarray:
    """The codes of actions, if they are integers and each action has as many as the space says."""
    codes = np.asarray(actions)
    if (
        codes.ndim != len(space.shape)
        or codes.shape[-1] != space.shape[-1]
        or not np.issubdtype(codes.dtype, np.integer)
    ):
        four = space.shape[-1] == len(tap.CODES)
        names = ", ".join(tap.CODES if four else tap.WITH_TMAX)
        raise ValueError(f"codes must be {'four' if four else 'five'} integers ({names}), got {actions!r}")
    return codes


def outcome(configuration: Configuration, score: Score) -> dict[str, Any]:
    """A scored configuration as the last `info` of an episode has it."""
    return {"codes": np.array(configuration, np.int64)} | measured(score)


def measured(score: Score) -> dict[str, Any]:
    """A score by the names that rows have for it."""
    return {entry.name.rstrip("_"): getattr(score, entry.name) for entry in fields(score)}


def shipped_problem(
    model: str = "squeezenet", engine: str | None = None, sites: str = "standard", search_tmax: bool = False
) -> Problem:
    """`model`'s shipped digits teacher on the whole search split, with default settings.

    Args:
        engine: as `engines.build` takes it. By default it is 'vector'; where the CPU cannot run that, 'portable' with
            a note on stderr.
        sites: which layers are approximated, as `int8.sites` has it.
        search_tmax: whether a configuration has its own tmax, as a fifth code of each layer.
    """
    if engine is None:
        engine = "vector" if convolution.available() else "portable"
        if engine == "portable":
            print("this CPU has no AVX2: the portable engine scores, slowly (engine='portable')", file=sys.stderr)
    dataset = data.load("digits")
    network = with_sites(store.read(store.path_of(model, "digits")).network, sites)
    images, _ = dataset.load("calibration", CALIBRATION_BATCHES * CALIBRATION_BATCH_SIZE)
    batches = np.split(images, CALIBRATION_BATCHES)
    calibrated = calibration.calibrate(network, batches, search_tmax=search_tmax, engine=engine)
    return Problem(network, calibrated, *dataset.load("search"), Reward(), engine)


def shipped_evaluator(
    model: str = "squeezenet", engine: str | None = None, sites: str = "standard", search_tmax: bool = False
) -> Evaluator:
    """The evaluator of `shipped_problem`."""
    return Evaluator(shipped_problem(model, engine, sites, search_tmax))
