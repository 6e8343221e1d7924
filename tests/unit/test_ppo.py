"""How an iteration is shared out among env runners, and what they get."""

from itertools import pairwise
from unittest.mock import Mock

import pytest

from search import ppo


@pytest.mark.parametrize("runners", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("wanted", [0, 1, 5, 32, 100])
@pytest.mark.parametrize("together", [1, 3])
def test_chunks_cover_the_episodes_once_and_in_order(wanted, runners, together):
    chunks = list(ppo.shares(7, wanted, runners, together))
    assert sum(count for _, count in chunks) == wanted
    assert [first for first, _ in chunks] == [7 + sum(count for _, count in chunks[:k]) for k in range(len(chunks))]
    assert all(count > 0 for _, count in chunks)
    assert all(count % together == 0 for _, count in chunks[:-1])


def test_one_runner_gets_all_at_once():
    assert list(ppo.shares(0, 32, 1, 1)) == [(0, 32)]


def test_several_runners_get_most_of_their_share_and_then_less():
    chunks = [count for _, count in ppo.shares(0, 32, 2, 1)]
    assert chunks == [12, 12, 2, 2, 2, 2]
    assert all(more >= less for more, less in pairwise(chunks))


def test_episodes_are_drawn_with_the_weights_that_come_with_them():
    calls = []
    runner = Mock()
    runner.set_state.side_effect = lambda state: calls.append(state)
    runner.sample.side_effect = lambda num_episodes: calls.append((runner.next_episode, num_episodes)) or ["an episode"]
    first, episodes, _ = ppo.sample_range(runner, "weights", 7, 3)
    assert calls == [{"rl_module": "weights"}, (7, 3)]
    assert (first, episodes) == (7, ["an episode"])
