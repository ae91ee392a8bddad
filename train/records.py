"""What a run leaves behind: log.csv, TensorBoard events, curves.png. Only the first process writes."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, Mapping, Sequence

from gradseg.models.files import atomic_path


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
        self.write_csv()

    def write_csv(self) -> None:
        with (
            atomic_path(self.out / "log.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            for row in self.rows:
                writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})

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
