"""PyTorch on the frames of a pack, in a process of its own: gpu.py asks it for its turns. Needs torch.

Its Python may be another one than TensorRT's. It reads one JSON object per line on stdin and answers each with one on
its first stdout; whatever else prints goes to stderr.

eager: float32, as PyTorch runs it by default (TF32 in cuDNN's convolutions where the GPU has it). compile:
torch.compile, "reduce-overhead", which uses CUDA graphs. half: channels-last float16. half-compile: both. All get the
frame as uint8 in page-locked memory, and normalise and take the argmax on the GPU: the engines' own terms.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.json_process import answers_alone, serve
from gradseg.benchmarks.on_gpu.check import frames_for_timing, labels_of
from gradseg.benchmarks.on_gpu.index import Pack
from gradseg.benchmarks.on_gpu.measure import FRAMES, STAGES, EngineSeries, Frames
from gradseg.models.checkpoint import load_checkpoint

VARIANTS = ("eager", "compile", "half", "half-compile")


class TorchNetwork:
    """A checkpoint on the device, with the methods of `TrtEngine` that measuring needs."""

    def __init__(self, path: Path, input_hw: tuple[int, int], variant: str, device: str) -> None:
        checkpoint = load_checkpoint(path)
        spec = checkpoint.spec.with_size(input_hw)
        half = variant.startswith("half")
        self._dtype = torch.float16 if half else torch.float32
        self._device = torch.device(device)
        network: Any = checkpoint.network.eval().to(self._device, self._dtype)
        self._layout = torch.channels_last if half else torch.contiguous_format
        network = network.to(memory_format=self._layout)
        self._order = torch.tensor([2, 1, 0] if spec.color_order == "rgb" else [0, 1, 2], device=self._device)
        std, mean = torch.tensor(spec.std), torch.tensor(spec.mean)
        self._scale = (1 / (255 * std)).to(self._device).view(1, 3, 1, 1)
        self._shift = (mean / std).to(self._device).view(1, 3, 1, 1)
        self._work: Callable[[Any], Any] = lambda frame: network(self._normalised(frame)).argmax(1).to(torch.uint8)
        if variant.endswith("compile"):
            self._work = torch.compile(self._work, mode="reduce-overhead")
        self.frame_hw = input_hw
        self._input = torch.zeros((1, *input_hw, 3), dtype=torch.uint8)
        if self._device.type == "cuda":
            self._input = self._input.pin_memory()
        self.staging: np.ndarray[Any, Any] = self._input.numpy()
        self._waiting: list[Any] = []

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (1, h, w, 3) → uint8 labels (1, h, w)."""
        self._stage(batch)
        with torch.inference_mode():
            labels: np.ndarray[Any, Any] = self._work(self._input.to(self._device, non_blocking=True)).cpu().numpy()
        return labels

    def begin(self, batch: np.ndarray[Any, Any]) -> None:
        """PyTorch as it is usually written has one frame in flight: the labels are there when this returns."""
        self._waiting.append(self.infer(batch))

    def finish(self) -> np.ndarray[Any, Any]:
        labels: np.ndarray[Any, Any] = self._waiting.pop(0)
        return labels

    def stage_times(self, batch: np.ndarray[Any, Any]) -> dict[str, float]:
        """Milliseconds of upload, inference and download: CUDA events, wall clock on a CPU."""
        self._stage(batch)
        marks = [self._mark()]
        with torch.inference_mode():
            frame = self._input.to(self._device, non_blocking=True)
            marks.append(self._mark())
            labels = self._work(frame)
            marks.append(self._mark())
            labels.cpu()
        marks.append(self._mark())
        return dict(zip(STAGES, (self._between(*pair) for pair in zip(marks, marks[1:]))))

    def close(self) -> None:
        self._work = lambda frame: None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _stage(self, batch: np.ndarray[Any, Any]) -> None:
        if batch is not self.staging:
            np.copyto(self.staging, batch)

    def _normalised(self, frame: Any) -> Any:
        pixels = frame.permute(0, 3, 1, 2)[:, self._order].float() * self._scale - self._shift
        return pixels.to(self._dtype).contiguous(memory_format=self._layout)

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter_ns()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if isinstance(begin, int):
            return float(end - begin) / 1e6
        end.synchronize()
        return float(begin.elapsed_time(end))


class Worker:
    """Answers requests; at most the networks of one model are open. device: cuda, or cpu to try it."""

    def __init__(self, pack: Pack, device: str) -> None:
        self._pack, self._device = pack, device
        self._frames = Frames(list(frames_for_timing(pack, FRAMES)), pack.frame_hw)
        self._series: dict[str, EngineSeries] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name, row = request["do"], request.get("row", "")
        if name == "hello":
            device = torch.cuda.get_device_name(0) if self._device == "cuda" else "CPU"
            return {"torch": torch.__version__, "device": device, "cudnn_tf32": torch.backends.cudnn.allow_tf32}
        if name == "open":
            return self._open(row, request["model"], request["variant"])
        series = self._series[row]
        if name in ("end_to_end", "stages"):
            return {"ms": getattr(series, name)(request["start"], request["count"], request["settle"])}
        if name == "flight":
            return {"seconds": series.flight(request["count"])}
        if name == "close":
            self._series.pop(row).close()
            return {}
        raise GradsegError(f"unknown request {name!r}")

    def _open(self, row: str, model: str, variant: str) -> dict[str, Any]:
        path = self._pack.checkpoint(model)
        if path is None:
            raise GradsegError(f"{self._pack.folder}: holds no checkpoint of {model}; prepare it without --torch none")
        network = TorchNetwork(path, self._pack.input_hw, variant, self._device)
        precision = "fp16" if variant.startswith("half") else "fp32"
        found = labels_of(self._pack, model, precision, "network", network)
        self._series[row] = EngineSeries(row, "plain", network, self._frames)
        return {"labels": found}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="pack", type=Path, required=True, help="folder of gpu.py --prepare")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args(argv)
    with answers_alone() as out:
        torch.backends.cudnn.benchmark = True  # one input size: let cuDNN choose by trying
        serve(Worker(Pack(arguments.pack), arguments.device).answer, sys.stdin, out)
    return 0


if __name__ == "__main__":
    run_main(main)
