"""What a run leaves behind: log.csv, TensorBoard events, curves.png. Only the first process writes."""

from __future__ import annotations

import csv
import math
import os
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path


class Records:
    """Rows of one run, one per epoch: numbers by column name; NaN where an epoch was not evaluated."""

    def __init__(self, out: Path, classes: Sequence[str], rows: Sequence[Mapping[str, Any]] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.out = out
        self.columns = ["epoch", "phase", "alpha", "lr", "loss", "miou", "pixel_accuracy", "seconds"]
        self.columns += [f"iou/{name}" for name in classes]
        self.rows = [dict(row) for row in rows]
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=len(self.rows))

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends an epoch's row and rewrites the files (small: a run has hundreds of rows)."""
        self.rows.append(dict(row))
        for key, value in row.items():
            if isinstance(value, float) and math.isfinite(value):
                self.board.add_scalar(key, value, int(row["epoch"]))
        self.board.flush()
        write_rows(self.out / "log.csv", self.columns, self.rows)

    def plot(self) -> None:
        """curves.png: loss, mIoU and α against the epoch, phases shaded."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
        epochs = [row["epoch"] for row in self.rows]
        left.plot(epochs, [row["loss"] for row in self.rows], color="tab:blue", label="training loss")
        evaluated = [row for row in self.rows if math.isfinite(row["miou"])]
        right.plot(
            [row["epoch"] for row in evaluated], [row["miou"] for row in evaluated], ".-", label="validation mIoU"
        )
        right.plot(epochs, [row["alpha"] for row in self.rows], color="tab:orange", label="alpha")
        right.set_ylim(0, 1)
        for axis in (left, right):
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.3)
            for name, shade in (("encoder", "0.93"), ("decoder", "0.86")):
                inside = [row["epoch"] for row in self.rows if row["phase"] == name]
                if inside:
                    axis.axvspan(inside[0] - 0.5, inside[-1] + 0.5, color=shade, zorder=0, label=f"{name} phase")
            axis.legend()
        with atomic_path(self.out / "curves.png") as temporary:
            figure.savefig(temporary, dpi=110)
        pyplot.close(figure)

    def close(self) -> None:
        self.board.close()


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with a heading, written atomically; numbers with six digits."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def prepare_folder(out: Path, resume: bool, advice: str = "continue it with --resume, or choose another --out") -> None:
    """Creates the output folder; refuses one that holds a run, with `advice`, unless it is resumed, and the reverse."""
    last = out / "last.pth"
    if resume and not last.is_file():
        raise GradsegError(f"--resume: no {last}; start without --resume")
    if not resume and last.is_file() and int(os.environ.get("RANK", "0")) == 0:
        raise GradsegError(f"{out} already holds a run; {advice}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("last", "best", "log", "curves", "settings"):  # halves of files that a kill left behind
            for leftover in out.glob(f".{name}-*"):
                leftover.unlink()
    except OSError as error:
        raise GradsegError(f"--out {out}: {error.strerror or error}") from error


T = TypeVar("T")
FACTS = {"phase": "{:<7}", "alpha": "alpha {:.3f}", "lr": "lr {:.2e}", "loss": "loss {:.4f}", "zeros": "zeros {:.3f}"}


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
