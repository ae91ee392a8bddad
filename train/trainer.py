"""One training run: phases, epochs, validation, checkpoints, resume. Distribution and precision by Lightning Fabric."""

from __future__ import annotations

import gc
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from lightning_fabric import Fabric

from gradseg.base.errors import GradsegError
from gradseg.data.base import Dataset
from gradseg.models.checkpoint import FORMAT, check_state, gradual_network, read_raw, save_checkpoint
from gradseg.models.grouping import get_alpha, set_alpha
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import ModelSpec
from gradseg.train.feed.augment import PRESETS
from gradseg.train.feed.batches import Feeder, epoch_order
from gradseg.train.losses import (
    class_shares,
    class_weights,
    coarse_cross_entropy,
    cross_entropy,
    evaluate,
    soft_jaccard,
)
from gradseg.train.phases import (
    Average,
    copied,
    initialise,
    leave_encoder_phase,
    parameter_groups,
    phase_module,
    swapped,
)
from gradseg.train.records import Progress, Records
from gradseg.train.settings import FitSettings, Phase, alpha_at, learning_rate

MAX_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class FitResult:
    """miou, per_class: of the best checkpoint on the validation frames, as fractions; NaN for a class that does not
    occur."""

    best: Path
    miou: float
    per_class: dict[str, float]


def make_fabric(precision: str) -> Fabric:
    """One process, or as many as `torchrun` started (its environment says so), on GPUs if there are any."""
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    several: dict[str, Any] = {} if world == 1 else {"num_nodes": world // local, "strategy": "ddp"}
    return Fabric(accelerator=accelerator, devices=local, precision=precision, **several)  # type: ignore[arg-type]


class Trainer:
    """Runs `settings` on `data`, validating on `val`; files go to `out`. Call `run()` once."""

    def __init__(
        self, settings: FitSettings, spec: ModelSpec, data: Dataset, val: Dataset, out: Path, fabric: Fabric
    ) -> None:
        self.settings, self.spec, self.data, self.val, self.out, self.fabric = settings, spec, data, val, out, fabric
        self.best_path, self.last_path = out / "best.pth", out / "last.pth"
        self.phases = settings.phases()
        torch.manual_seed(settings.seed)
        has_encoder_phase = self.phases[0].name == "encoder"
        build = SegNetwork if settings.direct else gradual_network  # already grouped, or dense and gradual
        self.network: SegNetwork = build(spec, has_encoder_phase, settings.dropout)
        self.started = initialise(self.network, settings.init) if settings.init else ""
        if not has_encoder_phase:
            self._to_final_form()
        self._to_device()
        class_shares(val, len(val), "--val")  # reads every label: what is wrong with one is said before training
        self.weights = class_weights(class_shares(data), settings.class_weights, settings.class_power)
        self.weights = self.weights.to(fabric.device)
        self.best, self.epoch, self.rows = float("-inf"), 0, list[dict[str, Any]]()
        self.loaded: Optional[dict[str, Any]] = None

    def _to_device(self) -> None:
        self.network.to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _to_final_form(self) -> None:
        """True grouped convolutions and no predictor, whatever alpha is: nothing would lower it any more."""
        set_alpha(self.network, 0.0)
        leave_encoder_phase(self.network)

    def resume(self) -> None:
        """Continues from `last.pth`; raises GradsegError if it is another run's or damaged."""
        raw = read_raw(self.last_path)
        stored = raw.get("resume")
        if not isinstance(stored, dict) or raw.get("format") != FORMAT:
            raise GradsegError(f"{self.last_path}: not the state of a training run; start afresh with another --out")
        changed = self.settings.differences(stored["settings"])
        if changed:
            raise GradsegError(f"{self.last_path}: belongs to a run with other settings ({'; '.join(changed)})")
        self.epoch, self.best, self.rows = int(stored["epoch"]), float(stored["best"]), list(stored["rows"])
        if stored["phase"] != "encoder":
            self._to_final_form()
        phase_over = self.epoch in {phase.end for phase in self.phases}  # then its average goes on, as in `_run_phase`
        state = stored["average" if phase_over else "network"]
        check_state(self.network, state, self.last_path)
        self.network.load_state_dict(state)
        self._to_device()
        self.loaded = None if phase_over else stored

    def run(self) -> FitResult:
        """Trains to the end; returns where the checkpoints are. `last.pth` is complete after every epoch."""
        records = Records(self.out, self.spec.classes, self.rows) if self.fabric.is_global_zero else None
        with Progress(self.settings.epochs, self.epoch, self.fabric.is_global_zero) as progress:
            for phase in self.phases:
                if self.epoch < phase.end:
                    self._run_phase(phase, records, progress)
        if records is not None:
            records.plot()
            records.close()
        self.fabric.barrier()
        best = next((row for row in self.rows if row["phase"] != "encoder" and row["miou"] == self.best), {})
        per_class = {name: best.get(f"iou/{name}", math.nan) for name in self.spec.classes}
        return FitResult(self.best_path, self.best, per_class)

    def _run_phase(self, phase: Phase, records: Optional[Records], progress: Progress) -> None:
        unfinished = self.network.encoder.output_conv is not None or get_alpha(self.network) is not None
        if phase.name != "encoder" and unfinished:
            leave_encoder_phase(self.network)
            self._to_device()
        module = phase_module(self.network, phase.name)
        groups = parameter_groups(module, self.settings.weight_decay)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=self.settings.lr)
        average = Average(self.network, self.settings.ema)
        if self.loaded is not None:
            optimizer.load_state_dict(self.loaded["optimizer"])
            self.fabric.strategy.precision.load_state_dict(self.loaded.get("precision", {}))
            average.state = {k: v.to(self.fabric.device) for k, v in self.loaded["average"].items()}
            average.updates = int(self.loaded["updates"])
            self.loaded = None
        wrapped, optimizer = self.fabric.setup(module, optimizer)
        while self.epoch < phase.end:
            started = time.perf_counter_ns()
            loss, rate = self._train_epoch(phase, wrapped, optimizer, average, progress)
            alpha = get_alpha(self.network) or 0.0
            row = {"epoch": self.epoch, "phase": phase.name, "alpha": alpha, "lr": rate, "loss": loss}
            row.update(self._validate(phase, average, progress))
            row["seconds"] = (time.perf_counter_ns() - started) / 1e9
            self.epoch += 1
            if records is not None:  # before the checkpoint: a resumed run rewrites the log from it, so none is missing
                records.add(row)
            self._save(phase, optimizer, average, row)
            if records is not None and self.epoch % 10 == 0:
                records.plot()
            progress.epoch_done(row, self.best)
        self.network.load_state_dict(average.state)
        del wrapped, optimizer, module
        gc.collect()  # a distributed wrapper's hooks go with it

    def _train_epoch(
        self, phase: Phase, module: Any, optimizer: Any, average: Average, progress: Progress
    ) -> tuple[float, float]:
        settings, fabric = self.settings, self.fabric
        rank, world = fabric.global_rank, fabric.world_size
        order = epoch_order(len(self.data), settings.seed, self.epoch, rank, world, settings.batch)
        assert settings.crop is not None
        feeder = Feeder(self.data, self.spec, settings.crop, PRESETS[settings.augment], settings.seed, self.epoch)
        torch.manual_seed(settings.seed * 100_003 + self.epoch * 101 + fabric.global_rank)  # dropout: same when resumed
        module.train()
        total, rate = 0.0, settings.lr
        steps_before, steps = (self.epoch - phase.start) * len(order), phase.epochs * len(order)
        for step, (images, labels) in enumerate(progress.batches(feeder.batches(order), len(order))):
            done = (steps_before + step) / steps
            rate = learning_rate(done, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if phase.name == "encoder" and not settings.direct:
                set_alpha(self.network, alpha_at(done, settings.alpha_schedule, settings.alpha_until))
            loss = self._loss(phase, module(images.to(fabric.device)).float(), labels.to(fabric.device))
            optimizer.zero_grad()
            fabric.backward(loss)
            fabric.clip_gradients(module, optimizer, max_norm=MAX_GRADIENT_NORM, error_if_nonfinite=False)
            optimizer.step()
            average.update(self.network)
            total += float(loss.detach())
            if not math.isfinite(total):
                raise GradsegError(
                    f"training diverged in epoch {self.epoch} (loss is not finite); lower --lr; "
                    f"{self.last_path} holds the last good epoch"
                )
        if phase.name == "encoder" and self.epoch + 1 == phase.end and get_alpha(self.network):
            set_alpha(self.network, 0.0)  # few, short epochs: the last step may lie before the schedule's end
            average.state.update({k: v.clone() for k, v in self.network.state_dict().items() if k.endswith(".alpha")})
        if fabric.world_size > 1:  # BatchNorm statistics differ between processes: evaluate what the first one saves
            for tensor in average.state.values():
                torch.distributed.broadcast(tensor, 0)
        mean = torch.tensor(total / max(1, len(order)))
        return float(fabric.all_reduce(mean, reduce_op="mean")), rate  # type: ignore[arg-type]

    def _loss(self, phase: Phase, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if phase.name == "encoder":
            return coarse_cross_entropy(logits, labels, self.weights)
        loss = cross_entropy(logits, labels, self.weights)
        if self.settings.jaccard:
            loss = loss + self.settings.jaccard * soft_jaccard(logits, labels)
        return loss

    def _validate(self, phase: Phase, average: Average, progress: Progress) -> dict[str, float]:
        """mIoU, pixel accuracy and IoU per class of the averaged weights; NaN in epochs that are not evaluated."""
        if (self.epoch + 1) % self.settings.val_every and self.epoch + 1 != phase.end:
            return {"miou": math.nan, "pixel_accuracy": math.nan}
        fabric = self.fabric
        with swapped(self.network, average):
            self.network.eval()
            logits_of = self.network.encoder.predict if phase.name == "encoder" else self.network
            mine = range(fabric.global_rank, len(self.val), fabric.world_size)
            confusion = evaluate(logits_of, self.spec, self.val, fabric.device, progress.validation(mine))
        for name in ("matrix", "missed"):
            counts = fabric.all_reduce(torch.from_numpy(getattr(confusion, name)).to(fabric.device), reduce_op="sum")
            setattr(confusion, name, counts.cpu().numpy())  # type: ignore[union-attr]
        found = {"miou": confusion.miou(), "pixel_accuracy": confusion.pixel_accuracy()}
        found.update({f"iou/{name}": float(v) for name, v in zip(self.spec.classes, confusion.iou(), strict=True)})
        return found

    def _save(self, phase: Phase, optimizer: Any, average: Average, row: dict[str, Any]) -> None:
        """best.pth when the full network improved; last.pth always: averaged weights and all that resuming needs."""
        self.rows.append(row)
        if not self.fabric.is_global_zero:
            return
        info = {"metrics": row, "settings": self.settings.to_dict(), "epochs_done": self.epoch}
        if phase.name != "encoder" and row["miou"] > self.best:
            self.best = row["miou"]
            with swapped(self.network, average):
                save_checkpoint(self.best_path, self.network, info)
        resume: dict[str, Any] = {
            "settings": info["settings"],
            "phase": phase.name,
            **{name: getattr(self, name) for name in ("epoch", "best", "rows")},
            "network": copied(self.network.state_dict(), "cpu"),
            "optimizer": optimizer.state_dict(),
            "precision": dict(self.fabric.strategy.precision.state_dict()),
            "average": copied(average.state, "cpu"),
            "updates": average.updates,
        }
        save_checkpoint(self.last_path, self.network, info, resume["average"], resume=resume)
