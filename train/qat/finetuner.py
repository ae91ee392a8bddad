"""One fine-tuning run: a finished checkpoint's exported graph, trained with fake quantisation, zeros, or both."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.calibration.cost.accuracy import Frames, Network, Score
from gradseg.calibration.qdq.int8 import calibrated
from gradseg.calibration.qdq.int8_from_arguments import int8_from_stored
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.quantise import WeightSettings
from gradseg.calibration.qdq.repair import bias_corrected
from gradseg.data.base import Dataset
from gradseg.graphs.from_torch import onnx_from_checkpoint
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.train.feed.augment import PRESETS
from gradseg.train.feed.batches import PixelFeeder, epoch_order
from gradseg.train.losses import class_shares, class_weights, cross_entropy, soft_jaccard
from gradseg.train.phases import Average
from gradseg.train.qat.finetune_settings import FinetuneSettings
from gradseg.train.qat.onnx_module import OnnxModule
from gradseg.train.qat.sparsity import Sparsity, measured_sparsity, prunable
from gradseg.train.qat.unfold import POOLED, module_of, network_from_folded
from gradseg.train.records import Progress, write_rows
from gradseg.train.settings import learning_rate

STEP_RATE = 3.0  # learning rate of a scale's logarithm, in units of the weights' relative one
CLASS_WEIGHTS, CLASS_POWER, JACCARD = "enet", 0.7, 0.5  # as `fit` has them


@dataclass(frozen=True)
class FinetuneResult:
    """mIoU on the validation frames. before: of the float checkpoint. start: quantised or pruned, not yet trained (NaN
    while zeros are still to come). export: of best.pth's export in ONNX Runtime, with the share of labels that are
    those that training saw (`agreement`, all pixels counted)."""

    best: Path
    before: float
    start: float
    export: Score
    sparsity: Optional[dict[str, Any]]


class Finetuner:
    """Runs `settings` on `data`, validating on `val` at the checkpoint's size; files go to `out`. Call `run()` once."""

    def __init__(
        self,
        settings: FinetuneSettings,
        ckpt: Checkpoint,
        data: Dataset,
        val: Dataset,
        out: Path,
        threads: Optional[int] = None,
    ) -> None:
        self.settings, self.ckpt, self.data, self.out, self.threads = settings, ckpt, data, out, threads
        self.spec, self.sparsity = ckpt.spec, settings.wanted_sparsity()
        assert settings.crop is not None
        self.base = {"file": Path(settings.checkpoint).name, "sha256": sha256_of(settings.checkpoint)}
        torch.manual_seed(settings.seed)
        self.frames = Frames(val, self.spec)
        self.class_weights = class_weights(class_shares(data), CLASS_WEIGHTS, CLASS_POWER)
        model = onnx_from_checkpoint(ckpt)
        whole = settings.crop == tuple(self.spec.input_hw)
        self.full = OnnxModule(model)
        self.module = OnnxModule(model if whole else onnx_from_checkpoint(ckpt, settings.crop))
        self.teacher = copy.deepcopy(self.module).requires_grad_(False)
        self.before = self.frames.scored(export_runner(ckpt, threads).first)[0]
        if settings.target is not None:
            self._quantise(model, settings.target)
        self._start_masks()
        self.average = Average(self.module, settings.ema)
        self.rows: list[dict[str, Any]] = []
        self.best = float("-inf")

    def _quantise(self, model: Any, target: str) -> None:
        """Scales to start from, as post-training quantisation finds them: equalised, bias-corrected."""
        settings = self.settings
        found = calibrated(model, settings.data, settings.calib_frames, threads=self.threads)
        activations = found.activations(target, settings.method, settings.power_of_two)
        weights = WeightSettings(reduce_range=settings.reduce_range)
        plan = plan_for(found.model, target)
        ready = bias_corrected(found.model, plan, target, weights, found.statistics.means)
        self.full = OnnxModule(ready)
        self.module.load_state_dict(self.full.state_dict())
        learned = settings.scales == "learned"
        for module in (self.full, self.module):
            module.quantise(ready, target, activations, settings.power_of_two, learned, settings.reduce_range)

    def _start_masks(self) -> None:
        """Masks by node, shared by both modules: pruning, zeros of a pruned checkpoint, and those by structure."""
        self.module.masks = self.full.masks
        held = list(filter(POOLED.match, self.module.convolutions()))  # of a BatchNorm as a matrix
        before = self.ckpt.info.get("sparsity")
        self.asked = self.sparsity
        if self.sparsity is None and before is not None:  # pruned before: its zeros stay
            self.asked = Sparsity.parse(str(before["asked"]))
        chosen = prunable(self.ckpt.network, self.asked is not None and self.asked.pattern)
        self.pruned = [node for node in self.module.convolutions() if module_of(node) in chosen]
        if self.sparsity is None and self.asked is not None:
            held += self.pruned
        self.full.masks.update({node: (self.module.weight_of(node) != 0).float() for node in held})
        self.pruned_at = -1.0  # share of the run at which masks were last set
        self._prune(0.0)

    def _prune(self, done: float) -> None:
        """Sets the masks that are due at `done` 0..1 of the run; the final ones are set once."""
        if self.sparsity is None or self.pruning_done(self.pruned_at):
            return
        self.pruned_at = done
        for node in self.pruned:
            weight = self.module.weight_of(node)
            self.full.masks[node] = self.sparsity.mask(weight, done / self.settings.prune_until)

    def pruning_done(self, done: float) -> bool:
        """Whether the zeros at `done` 0..1 of the run are the final ones."""
        if self.sparsity is None:
            return True
        return done >= (0.0 if self.sparsity.pattern else self.settings.prune_until)

    def run(self) -> FinetuneResult:
        """Trains to the end. best.pth and last.pth are complete whenever they are there."""
        started = time.perf_counter_ns()
        start = math.nan
        with Progress(self.settings.epochs, 0, True) as progress:
            if self.pruning_done(0.0):
                start = self._finish_row({"epoch": 0, "lr": 0.0, "loss": math.nan}, True, started)["miou"]
                print(f"float mIoU {self.before.miou:.4f}, before fine-tuning {start:.4f}", flush=True)
            optimizer = torch.optim.Adam(self._parameter_groups())
            for epoch in range(self.settings.epochs):
                started = time.perf_counter_ns()
                loss, rate = self._train_epoch(epoch, optimizer, progress)
                due = (epoch + 1) % self.settings.val_every == 0 or epoch + 1 == self.settings.epochs
                row = self._finish_row({"epoch": epoch + 1, "lr": rate, "loss": loss}, due, started)
                progress.epoch_done(row, self.best)
        return self._result(start)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Adam's steps do not see a tensor's magnitude, so each gets a rate in proportion to it."""
        groups = []
        for node in self.module.convolutions():
            weight, bias = self.module.weight_of(node), self.module.bias_of(node)
            size = float(weight.detach().square().mean().sqrt())
            groups.append({"params": [weight], "size": size})
            groups.append({"params": [bias], "size": max(size, float(bias.detach().square().mean().sqrt()))})
        steps = list(self.module.step_parameters())
        if steps:
            groups.append({"params": steps, "size": STEP_RATE})
        return groups

    def _train_epoch(self, epoch: int, optimizer: torch.optim.Optimizer, progress: Progress) -> tuple[float, float]:
        settings = self.settings
        assert settings.crop is not None
        order = epoch_order(len(self.data), settings.seed, epoch, 0, 1, settings.batch)
        feeder = PixelFeeder(self.data, self.spec, settings.crop, PRESETS[settings.augment], settings.seed, epoch)
        total, rate = 0.0, settings.lr
        for step, (frames, labels) in enumerate(progress.batches(feeder.batches(order), len(order))):
            done = (epoch * len(order) + step) / (settings.epochs * len(order))
            rate = learning_rate(done, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["size"]
            self._prune(done)
            loss = self._loss(frames, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.average.update(self.module)
            total += float(loss.detach())
            if not math.isfinite(total):
                raise GradsegError(f"fine-tuning diverged in epoch {epoch + 1} (loss is not finite); lower --lr")
        self._prune((epoch + 1) / settings.epochs)
        return total / max(1, len(order)), rate

    def _loss(self, frames: Tensor, labels: Tensor) -> Tensor:
        logits = self.module(frames)
        loss = cross_entropy(logits, labels, self.class_weights) + JACCARD * soft_jaccard(logits, labels)
        if self.settings.distill:
            with torch.no_grad():
                wanted = self.teacher(frames).log_softmax(1)
            divergence = F.kl_div(logits.log_softmax(1), wanted, reduction="sum", log_target=True)
            loss = loss + self.settings.distill * divergence / labels.numel()
        return loss

    def _finish_row(self, row: dict[str, Any], due: bool, started: int) -> dict[str, Any]:
        """Validates, writes the log and the checkpoints; only those whose zeros are final can be the best."""
        self.full.load_state_dict(self.average.state)
        network = network_from_folded(self.spec, self.full.folded())
        found: dict[str, Any] = {"miou": math.nan}
        if due:
            score, labels = self.frames.scored(self._export(network))
            found["miou"] = score.miou
            found.update({f"iou/{k}": math.nan if v is None else v for k, v in score.per_class.items()})
        row = {**row, **found, "seconds": (time.perf_counter_ns() - started) / 1e9}
        row["zeros"] = measured_sparsity(network, self.asked)["achieved"]
        self.rows.append(row)
        columns = ["epoch", "lr", "loss", "zeros", "miou", "seconds", *(f"iou/{name}" for name in self.spec.classes)]
        write_rows(self.out / "log.csv", columns, self.rows)
        info = self._info(network, row)
        if row["miou"] > self.best and self.pruning_done(row["epoch"] / self.settings.epochs):
            self.best = row["miou"]
            self.best_labels = labels
            save_checkpoint(self.out / "best.pth", network, info)
        save_checkpoint(self.out / "last.pth", network, info)
        return row

    def _info(self, network: Any, row: dict[str, Any]) -> dict[str, Any]:
        info = {"metrics": row, "settings": self.settings.to_dict(), "float_miou": self.before.miou, "base": self.base}
        if self.settings.target is not None:
            info["quantisation"] = {**self.quantisation(), "base": self.base}
        if self.asked is not None:
            info["sparsity"] = measured_sparsity(network, self.asked)
        return info

    def quantisation(self) -> dict[str, Any]:
        """The scales as they are now, in the form that a checkpoint holds and `int8_from_qat` reads."""
        activations = self.full.activation_quantisations()
        return {
            "target": self.settings.target,
            "power_of_two": self.settings.power_of_two or self.settings.target == "tidl",
            "scales": self.settings.scales,
            "reduce_range": self.settings.reduce_range,
            "activations": {name: [q.scale, q.zero_point, q.signed] for name, q in activations.items()},
            "weights": {name: [float(v) for v in scales] for name, scales in self.full.weight_scales().items()},
        }

    def _export(self, network: SegNetwork) -> Network:
        """What the exporter would make of the weights and scales as they are: batch → labels. Validation sees these, so
        that the figure of a checkpoint is that of its export on every target, whatever the order of float sums."""
        info = {} if self.settings.target is None else {"quantisation": self.quantisation()}
        return export_runner(Checkpoint(self.spec, network, info), self.threads).first

    def _result(self, start: float) -> FinetuneResult:
        best = self.out / "best.pth"
        stored = load_checkpoint(best)
        export = self.frames.score(export_runner(stored, self.threads).first, self.best_labels)
        return FinetuneResult(best, self.before.miou, start, export, stored.info.get("sparsity"))


def export_runner(ckpt: Checkpoint, threads: Optional[int] = None) -> OnnxRunner:
    """The checkpoint's export in ONNX Runtime, as `to_ort.py` writes it: INT8 if it holds scales, else FP32.

    Made for other devices than this CPU, it is run as its Q/DQ pairs are written.
    """
    model, integers = onnx_from_checkpoint(ckpt), True
    if "quantisation" in ckpt.info:
        stored = ckpt.info["quantisation"]
        model, integers = int8_from_stored(model, stored), stored["target"] == "cpu"
    return OnnxRunner(model.SerializeToString(), "the export", threads, integers=integers)
