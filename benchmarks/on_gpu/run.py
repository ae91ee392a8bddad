"""Builds, checks and measures the engines of a pack, model by model; what is done stands in the result file at once.

Each model runs in a process of its own: an engine that crashes, or leaves the GPU in a state that only a new process
mends, costs its own row. Python 3.8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.on_gpu.check import frames_for_timing, labels_of
from gradseg.benchmarks.on_gpu.engines import Backend, Wanted
from gradseg.benchmarks.on_gpu.floors import bandwidth_of, distances, floors_of, peaks_of
from gradseg.benchmarks.on_gpu.index import BORDERS, PRECISIONS, Pack
from gradseg.benchmarks.on_gpu.launch import TorchMissing, TorchProcess
from gradseg.benchmarks.on_gpu.measure import (
    FRAMES,
    Clocks,
    EngineFailed,
    EngineSeries,
    Frames,
    Samples,
    Series,
    measure,
)
from gradseg.benchmarks.on_gpu.results import (
    BUILT,
    CHECKED,
    ENDED,
    FAILED,
    MEASURED,
    PLANNED,
    SKIPPED,
    STAND_IN,
    TENSORRT,
    TORCH,
    Results,
    end_to_end_ms,
    inference_ms,
    row_id,
)


class FreshProcess(Exception):  # noqa: N818  not an error: what failed is in its row
    """An engine failed in a way that may have spoilt this process; the other rows go on in a new one."""


@dataclass(frozen=True)
class Settings:
    """models: () for all in the pack. samples, warmup: frames per engine. deadline: of time.monotonic, None without a
    time budget."""

    models: Tuple[str, ...] = ()
    precisions: Tuple[str, ...] = PRECISIONS
    borders: Tuple[str, ...] = BORDERS
    torch: Tuple[str, ...] = ("eager", "compile", "half")
    samples: int = 200
    warmup: int = 20
    deadline: Optional[float] = None

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def to_dict(self) -> Dict[str, Any]:
        """What two runs must have in common to be one."""
        names = ("models", "precisions", "borders", "torch", "samples", "warmup")
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


def rows_for(pack: Pack, settings: Settings, stand_in: bool = False) -> List[Dict[str, Any]]:
    """Every row of a run, in order."""
    found: List[Tuple[str, str, str, str]] = []
    for model in settings.models or pack.models:
        borders = [border for border in settings.borders if border in pack.index["models"][model]["onnx"]]
        engine = STAND_IN if stand_in else TENSORRT
        found += [(model, engine, precision, border) for border in borders for precision in settings.precisions]
        variants = settings.torch if pack.checkpoint(model) is not None else ()
        found += [(model, TORCH, variant, "network") for variant in variants]
    names = ("model", "engine", "precision", "border")
    return [{"id": row_id(*each), **dict(zip(names, each))} for each in found]


@dataclass
class Run:
    """What the work on a model needs. start_torch: opens PyTorch's process, or raises TorchMissing. log: for people."""

    pack: Pack
    backend: Backend
    results: Results
    settings: Settings
    start_torch: Callable[[], TorchProcess]
    log: Callable[[str], None] = print
    clocks: Callable[[], Clocks] = field(default=Clocks)

    def model(self, model: str) -> None:
        """All rows of one model that have not ended. Raises FreshProcess if the rest needs a new process."""
        self._gpu_facts()
        for row in self.results.of_model(model, torch=False):
            if row["status"] not in ENDED and not self.settings.late():
                self._prepare(row)
        with contextlib.ExitStack() as stack:
            series = self._torch_series(model, stack) if not self.settings.late() else []
            for group in self._groups(model):
                if not self.settings.late():
                    self._measure(group, series)

    def _prepare(self, row: Dict[str, Any]) -> None:
        wanted = Wanted(row["model"], row["precision"], row["border"])
        with self._step(row, "building") as goes_on:
            if goes_on:  # also after a kill: the plan may lie there, or be gone with another machine
                row["build"] = self.backend.build(self.pack, wanted)
                if row["status"] != CHECKED or not row["build"].get("taken_up"):
                    row["status"] = BUILT
        if row["status"] == BUILT:
            with self._step(row, "checked") as goes_on:
                if goes_on:
                    row["labels"] = self._labels(row, wanted)
                    row["status"] = CHECKED
        self.log(f"{row['id']}: {row['error'] or _found(row)}")

    def _labels(self, row: Dict[str, Any], wanted: Wanted) -> Dict[str, Any]:
        engine = None
        for way in self.backend.ways:
            try:
                engine = self.backend.open(wanted, way)
                break
            except GradsegError as error:
                if way == self.backend.ways[-1]:
                    raise
                row["notes"] = [f"{way}: {error}"]
        try:
            return labels_of(self.pack, wanted.model, wanted.precision, wanted.border, engine)
        finally:
            if engine is not None:
                engine.close()

    @contextlib.contextmanager
    def _step(self, row: Dict[str, Any], name: str) -> Iterator[bool]:
        """Notes begin and end of a step; what goes wrong in it fails the row, and no other."""
        goes_on = self.results.begin(row, name)
        try:
            yield goes_on
        except Exception as error:  # noqa: BLE001  one engine must not end the run
            self._failed(row, error)
        else:
            if goes_on:
                self.results.survived(row, name)
                self.results.save()

    def _failed(self, row: Dict[str, Any], error: BaseException) -> None:
        """The row's end. What is not one of our own messages may have spoilt the process: FreshProcess."""
        self.results.fail(row, str(error) or type(error).__name__)
        if not isinstance(error, GradsegError):
            traceback.print_exception(type(error), error, error.__traceback__)
            raise FreshProcess(row["id"]) from error

    def _torch_series(self, model: str, stack: contextlib.ExitStack) -> List[Series]:
        """PyTorch's networks of a model, opened; their rows are failed or skipped where that cannot be."""
        rows = [row for row in self.results.of_model(model, torch=True) if row["status"] in (PLANNED, CHECKED)]
        if not rows or not self.results.unfinished(model):
            return []
        try:
            process = self.start_torch()
        except (TorchMissing, GradsegError) as error:
            for row in rows:
                missing = isinstance(error, TorchMissing)
                self.results.fail(row, f"PyTorch with CUDA: {error}", SKIPPED if missing else FAILED)
            return []
        stack.callback(process.close)
        self.results.data["pytorch"] = process.facts
        found: List[Series] = []
        for row in rows:
            with self._step(row, "opened") as goes_on:
                if goes_on:
                    series, row["labels"] = process.open(row["id"], model, row["precision"])
                    row["status"] = CHECKED
                    found.append(series)
            self.log(f"{row['id']}: {row['error'] or _found(row)}")
        return found

    def _groups(self, model: str) -> List[List[Dict[str, Any]]]:
        """Rows to be measured together: all of the model's, or, after a crash among them, one by one."""
        rows = [row for row in self.results.of_model(model) if row["status"] == CHECKED]
        if any(row["attempts"].get("measured") for row in rows):
            return [[row] for row in rows]
        return [rows] if rows else []

    def _measure(self, rows: List[Dict[str, Any]], torch_series: Sequence[Series]) -> None:
        rows = [row for row in rows if self.results.begin(row, "measured")]
        clocks = self.clocks()
        names = {row["id"] for row in rows}
        with contextlib.ExitStack() as stack:
            series: List[Series] = [each for each in torch_series if each.row in names]
            frames = Frames(list(frames_for_timing(self.pack, FRAMES)), self.pack.frame_hw)
            settings = self.settings
            try:
                for row in rows:
                    if row["engine"] != TORCH:
                        series += self._opened(row, frames, stack)
                found = measure(series, settings.samples, settings.warmup, settings.late, clocks.look)
            except EngineFailed as error:
                for row in rows:
                    self.results.survived(row, "measured")
                self._failed(next(row for row in rows if row["id"] == str(error)), error.__cause__ or error)
                raise
        for row in rows:
            if row["status"] == CHECKED:
                self._write(row, found, clocks, len(rows))
            self.results.survived(row, "measured")
            self.log(f"{row['id']}: {row['error'] or _found(row)}")
        self.results.save()

    def _opened(self, row: Dict[str, Any], frames: Frames, stack: contextlib.ExitStack) -> List[Series]:
        """The engine once for each way of running it; the row fails only if none can be opened."""
        wanted, found, errors = Wanted(row["model"], row["precision"], row["border"]), [], []
        for way in self.backend.ways:
            try:
                each = EngineSeries(row["id"], way, self.backend.open(wanted, way), frames)
            except GradsegError as error:
                errors.append(f"{way}: {error}")
                continue
            except Exception as error:
                raise EngineFailed(row["id"]) from error
            stack.callback(each.close)
            found.append(each)
        if errors:
            row["notes"] = list(dict.fromkeys([*row.get("notes", []), *errors]))
        if not found:
            self.results.fail(row, "; ".join(errors))
        return list(found)

    def _write(self, row: Dict[str, Any], found: Dict[Tuple[str, str], Samples], clocks: Clocks, together: int) -> None:
        """Puts what was measured into the row, if there was time for it."""
        mine = {way: samples for (name, way), samples in found.items() if name == row["id"]}
        errors = [samples.error for samples in mine.values() if samples.error is not None]
        if errors:
            self.results.fail(row, str(errors[0]))
        if errors or not mine or not all(samples.end_to_end for samples in mine.values()):
            return
        row["ways"] = {way: samples.summary() for way, samples in mine.items()}
        row["measured_with"] = together
        row["clocks"] = clocks.summary()
        if row["engine"] != TORCH:
            gpu = self.results.data.get("gpu_facts") or {}
            bandwidth = gpu.get("bandwidth", {}).get("bytes_per_s")
            peaks = gpu.get("peaks") or dict.fromkeys(PRECISIONS)
            counts = self.pack.counts(row["model"], row["precision"], row["border"])
            row["floors"] = floors_of(counts, row["precision"], bandwidth, peaks)
            row["distance"] = distances(row["floors"], inference_ms(row))
        row["status"] = MEASURED

    def _gpu_facts(self) -> None:
        """The GPU's memory bandwidth, measured once, and its arithmetic peaks."""
        if self.backend.gpu is not None and "gpu_facts" not in self.results.data:
            gpu = self.backend.gpu
            facts = {"bandwidth": bandwidth_of(gpu), "peaks": peaks_of(gpu)}
            self.results.data["gpu_facts"] = {**dataclasses.asdict(gpu), **facts}
            self.results.save()


def _found(row: Dict[str, Any]) -> str:
    build, labels = row.get("build"), row.get("labels") or {}
    share = labels.get("agreement")
    parts = [f"built in {build['seconds']:.1f} s"] if build else []
    parts += [f"labels equal on {100 * share:.4f} %"] if share is not None else []
    parts += [f"mIoU {labels['miou']:.4f}"] if labels.get("miou") is not None else []
    if row["status"] == MEASURED:
        parts = [f"end to end {end_to_end_ms(row):.3f} ms p50"]
    return ", ".join(parts) or str(row["status"])
