"""One candidate of tune.py in a process of its own, which builds, opens and runs it; a crash ends only this process.

Commands come as JSON lines on stdin, answers go as JSON lines to what was stdout; what libraries print goes to stderr.
A mistake (GradsegError) is an answer; any other exception ends the process, its last line says why.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from gradseg.base.conditions import proc_bytes
from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path
from gradseg.base.json_process import answers_alone, die_with_parent
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.ort import session_options
from gradseg.runtime.engines.protocol import Engine
from gradseg.runtime.native.files import save_program


class Served:
    """The commands by name, and what they share."""

    def __init__(self) -> None:
        self.engine: Optional[Engine] = None
        empty: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self.frames = self.frame = self.labels = empty
        self.count = 0

    def build(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Writes the engine file or files of a candidate; see `tuning.worker.build`."""
        return {"files": [str(path) for path in build(given)]}

    def open(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Opens the engine and the frames, (count, h, w, 3); `shared` names the files that `infer` uses."""
        if given["cpus"]:
            os.sched_setaffinity(0, given["cpus"])
        self.engine = open_engine(given["path"], given["threads"])
        self.frames = np.load(given["frames"])
        _, height, width, _ = self.frames.shape
        if tuple(self.engine.frame_hw) != (height, width) or self.engine.batch != 1:
            raise GradsegError(
                f"{given['path']}: takes {self.engine.batch} x {self.engine.frame_hw}, not {height}x{width}"
            )
        shape = (1, height, width)
        self.frame = np.asarray(np.memmap(given["shared"] + ".frame", np.uint8, "r+", shape=(*shape, 3)))
        self.labels = np.asarray(np.memmap(given["shared"] + ".labels", np.uint8, "r+", shape=shape))
        return {"backend": self.engine.backend, "device": self.engine.device, "threads": self.engine.threads}

    def turn(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """`settle` untimed frames, then `frames` timed ones, milliseconds each."""
        assert self.engine is not None
        clock, times = time.perf_counter_ns, []
        for index in range(-given["settle"], given["frames"]):
            self.count += 1
            first = self.count % len(self.frames)
            batch = self.frames[first : first + 1]
            begin = clock()
            self.engine.infer(batch)
            if index >= 0:
                times.append((clock() - begin) / 1e6)
        return {"ms": times, "memory": peak_memory()}

    def infer(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Labels of the shared frame."""
        assert self.engine is not None
        np.copyto(self.labels, self.engine.infer(self.frame))
        return {}

    def operators(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Milliseconds per frame by operator, as ONNX Runtime's profiler sees them; {} for other engines."""
        if Path(given["path"]).suffix != ".onnx":
            return {"ms": {}}
        return {"ms": operators(given["path"], given["threads"], self.frames)}


def peak_memory() -> int:
    """The most bytes of memory that this process had at once."""
    found = proc_bytes(Path("/proc/self/status"), "VmHWM")
    if found is not None:
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> int:
    answers = answers_alone()

    def answer(value: Dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    may_be_stopped = die_with_parent(signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it ended before
        return 1
    answer({"may_be_stopped": may_be_stopped})
    served = Served()
    for line in sys.stdin:
        given = json.loads(line)
        try:
            answer(getattr(served, given["do"])(given))
        except GradsegError as error:
            answer({"error": str(error), "exit_code": error.exit_code})
    return 0


def build(given: Dict[str, Any]) -> List[Path]:
    """`how`: copy, openvino or native. `source`, `out`: paths. `hint`, `pinning`: OpenVINO's, see `write_ir`.

    Gives the files written, the engine first. GradsegError for what the engine cannot be built from.
    """
    source, out = Path(given["source"]), Path(given["out"])
    if given["how"] == "copy":
        with atomic_path(out) as temporary:
            shutil.copyfile(str(source), str(temporary))
        return [out]
    try:
        import onnx

        model = onnx.load(str(source))
        if given["how"] == "openvino":
            from gradseg.export.openvino_ir.files import write_ir
            from gradseg.export.openvino_ir.make import openvino_form

            write_ir(openvino_form(model), out, given["hint"], given["pinning"])
            return [out, out.with_suffix(".bin")]
        from gradseg.export.native.lower import native_program
        from gradseg.runtime.native.library import native_isa

        if native_isa() is None:  # asked here, where a library that crashes harms nobody
            raise GradsegError("the native extension is not built here, or it has no kernels for this CPU", 3)
        save_program(native_program(model), out)
        return [out]
    except ImportError as error:
        raise GradsegError(f"{error.name or error} is not installed here", 3) from error


FRAMES, WARM_UP = 8, 2
ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def operators(path: str, threads: Optional[int], frames: np.ndarray[Any, Any]) -> Dict[str, float]:
    """Operator → milliseconds per frame, the longest first, for a deployment-form .onnx.

    frames: uint8 BGR (count, h, w, 3).
    """
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="gradseg-profile-") as folder:
        options = session_options(onnxruntime, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for index in range(WARM_UP + FRAMES):
            first = index % len(frames)
            session.run(None, {name: frames[first : first + 1]})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return times_of(events)


def times_of(events: Any) -> Dict[str, float]:
    """The profiler's events → operator → milliseconds per frame; each node's first runs are warm-up and left out."""
    totals: Dict[str, float] = defaultdict(float)
    runs: Dict[str, int] = defaultdict(int)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            runs[event["name"]] += 1
            if runs[event["name"]] > WARM_UP:
                totals[str(event["args"]["op_name"])] += event["dur"] / 1e3 / FRAMES
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def rounding_share(times: Mapping[str, float]) -> float:
    """The share of the time that goes into QuantizeLinear and DequantizeLinear, 0..1."""
    whole = sum(times.values())
    return sum(times.get(name, 0.0) for name in ROUNDING) / whole if whole else 0.0


if __name__ == "__main__":
    sys.exit(main())
