"""On a machine without a GPU, a stand-in shows in which order torch is asked for what."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from approx_env.adapt.replay import WARM_UP, Replayed


class Card:
    """A stand-in for torch.cuda: a capture keeps what would run, and a replay runs it again on the same tensors."""

    def __init__(self):
        self.captured, self.told = None, []

    class CUDAGraph:
        def replay(self):
            self.replayed()

    @contextmanager
    def graph(self, graph):
        self.told.append("capture")
        yield
        graph.replayed = self.again

    def Stream(self):  # noqa: N802  (torch's name)
        return self

    current_stream = Stream

    def wait_stream(self, other):
        self.told.append("wait")

    def stream(self, stream):
        return nullcontext()


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch, "cuda", card)
    return card


def test_a_step_is_captured_once_and_fed_anew(card):
    total, runs = torch.zeros(()), []

    def step(x: torch.Tensor) -> torch.Tensor:
        runs.append(x)
        return total.add_(x)

    def again():
        """What a GPU does: the same operations on the same memory."""
        output.copy_(total.add_(runs[-1]))

    card.again = again
    replayed = Replayed(step)
    given = [replayed(torch.tensor(float(value))).item() for value in range(1, WARM_UP + 1)]
    assert given == [1, 3, 6] and card.told == ["wait"] * 2 * WARM_UP
    output = replayed._output = torch.zeros(())
    replayed._step = lambda x: (runs.append(x), output)[1]  # a capture runs nothing
    given = [replayed(torch.tensor(value)) for value in (10.0, 20.0)]
    assert [value.item() for value in given] == [16, 36], "a result is not overwritten by the next"
    assert card.told.count("capture") == 1 and len(runs) == WARM_UP + 1


if torch.cuda.is_available():  # what the stand-in cannot show

    def test_a_captured_training_step_is_the_plain_one():
        def losses(through) -> list[float]:
            weight = torch.ones(3, device="cuda", requires_grad=True)
            adam = torch.optim.Adam([weight], torch.tensor(0.1, device="cuda"), fused=True, capturable=True)

            def step(x: torch.Tensor) -> torch.Tensor:
                adam.zero_grad()
                loss = (weight * x).square().sum()
                loss.backward()
                adam.step()
                return loss.detach()

            run = through(step)
            return [run(torch.full((3,), float(value), device="cuda")).item() for value in range(8)]

        assert losses(Replayed) == losses(lambda step: step)
