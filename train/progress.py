"""Progress bars with the time left (rich) on a terminal; a line per epoch everywhere."""

from __future__ import annotations

import math
import sys
from typing import Any, Iterable, Iterator, Mapping, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")
FACTS = {
    "phase": "{:<7}",
    "alpha": "alpha {:.3f}",
    "lr": "lr {:.2e}",
    "loss": "loss {:.4f}",
    "zeros": "zeros {:.3f}",
}


class Progress:
    """Bars for the run, the epoch's batches and the validation; silent in processes that are not the first."""

    def __init__(self, epochs: int, done: int, shown: bool) -> None:
        self.epochs, self.done, self.shown = epochs, done, shown
        console = Console(file=sys.stderr, quiet=not shown)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or not console.is_terminal,
        )
        self.run = self.bars.add_task("run, epochs", total=epochs, completed=done)
        self.inner = self.bars.add_task("epoch, batches", total=None)
        self.seconds = 0.0
        self.started_at = done

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def _tracked(self, items: Iterable[T], total: int, text: str) -> Iterator[T]:
        self.bars.reset(self.inner, total=total, description=text)
        for item in items:
            yield item
            self.bars.advance(self.inner)

    def batches(self, items: Iterable[T], total: int) -> Iterator[T]:
        return self._tracked(items, total, f"epoch {self.done}, batches")

    def validation(self, indices: range) -> Iterator[int]:
        return self._tracked(indices, len(indices), "validation, frames")

    def epoch_done(self, row: Mapping[str, Any], best: float) -> None:
        """Prints the epoch's line: what the row has of `FACTS`, mIoU and the time left."""
        self.done += 1
        self.bars.advance(self.run)
        self.seconds += row["seconds"]
        if not self.shown:
            return
        left = self.seconds / (self.done - self.started_at) * (self.epochs - self.done)
        facts = " ".join(text.format(row[name]) for name, text in FACTS.items() if name in row)
        score = f"mIoU {row['miou']:.4f}" if math.isfinite(row["miou"]) else "mIoU -     "
        best_text = f"best {best:.4f}" if math.isfinite(best) else "best -"
        times = f"{row['seconds']:.1f} s, {left / 60:.1f} min left"
        print(f"epoch {self.done}/{self.epochs} {facts} {score} {best_text} {times}", flush=True)
