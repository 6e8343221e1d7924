"""What a training tells while it runs: a progress bar, a line an epoch, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter


class Journal:
    """Writes `STEM.jsonl`, a line an epoch, and `STEM.tensorboard/`; shows a progress bar on a terminal.

    Args:
        stem: path before the suffixes.
    """

    def __init__(self, stem: Path):
        self._lines = stem.with_name(f"{stem.name}.jsonl")
        self._folder = stem.with_name(f"{stem.name}.tensorboard")
        self._board: SummaryWriter | None = None  # made by the first epoch: bad input leaves nothing behind
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, disable=not sys.stderr.isatty())
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Journal:
        self._progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self._progress.stop()
        if self._board:
            self._board.close()

    def epoch(self, record: dict[str, Any]) -> None:
        """Tells of a finished epoch: `stage`, `epoch` of `epochs`, and numbers.

        An epoch that a kill repeats has two lines; the last one counts.
        """
        stage, epoch = record["stage"], record["epoch"]
        self._board = self._board or SummaryWriter(str(self._folder))
        with self._lines.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{stage}/{name}", value, epoch)
        self._board.flush()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(f"{stage} epochs", total=record["epochs"])
        self._progress.update(self._tasks[stage], completed=epoch)
        self._progress.console.print(
            f"{stage} epoch {epoch}/{record['epochs']}: loss {record['loss']:.4f}, validation accuracy "
            f"{100 * record['validation_accuracy']:.2f} %, {record['seconds']:.0f} s "
            f"({100 * record['input_seconds'] / record['seconds']:.1f} % of it input)",
            highlight=False,
            soft_wrap=True,
        )
