"""Small stand-ins for the runtime's tests: ONNX files without torch, videos, engines and sources that misbehave."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import cv2
import numpy as np

from gradseg.models.spec import ModelSpec, spec_for
from gradseg.runtime.sinks.sink import Sink
from gradseg.runtime.sources.source import Captured, Source

HW = (24, 32)
SPEC = spec_for("dg2-star-light", input_hw=HW)


def expected_labels(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What `deployment_onnx` computes: the sum of the channels in eleven steps."""
    return (batch.astype(np.int64).sum(-1) * 11 // 766).astype(np.uint8)


def deployment_onnx(
    path: Path,
    hw: Tuple[int, int] = HW,
    metadata: bool = True,
    spec: Optional[ModelSpec] = None,
    batch: int = 1,
    precision: str = "int8",
) -> Path:
    """frame uint8 (batch, h, w, 3) → labels uint8 (batch, h, w) = floor(sum of channels * 11 / 766)."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["frame"], ["wide"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["wide", "axis"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "eleven"], ["scaled"]),
        helper.make_node("Div", ["scaled", "limit"], ["index"]),
        helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("axis", 3), ("eleven", 11), ("limit", 766))
    ]
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [batch, *hw, 3])
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, [batch, *hw])
    props = {
        "gradseg.spec": (spec or spec_for("dg2-star-light", input_hw=hw)).to_json(),
        "gradseg.format": "deployment",
        "gradseg.precision": precision,
        "gradseg.calibration": '{"frames": 3}',
    }
    if batch > 1:
        props["gradseg.batch"] = str(batch)
    return _save(path, nodes, frame, labels, constants, props if metadata else {})


def framed_onnx(path: Path, frame_hw: Tuple[int, int], batch: int = 1) -> Path:
    """As `deployment_onnx`, for a network of HW with frames of another size built in."""
    import onnx

    model = onnx.load(str(deployment_onnx(path, frame_hw, spec=SPEC, batch=batch)))
    entry = model.metadata_props.add()
    entry.key, entry.value = "gradseg.frame_size", f"{frame_hw[0]}x{frame_hw[1]}"
    onnx.save(model, str(path))
    return path


def logits_onnx(path: Path, weights: np.ndarray[Any, Any], hw: Tuple[int, int] = HW, metadata: bool = True) -> Path:
    """input float32 (1, 3, h, w) → logits float32 (1, C, h, w) by a 1x1 convolution with `weights` (C, 3)."""
    from onnx import TensorProto, helper, numpy_helper

    constant = numpy_helper.from_array(weights.astype(np.float32).reshape(-1, 3, 1, 1), "weights")
    nodes = [helper.make_node("Conv", ["input", "weights"], ["logits"])]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *hw])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[0], *hw])
    props = {"gradseg.spec": spec_for("d", input_hw=hw).to_json(), "gradseg.format": "logits"}
    return _save(path, nodes, image, logits, [constant], props if metadata else {})


def _save(path: Path, nodes: Any, given: Any, result: Any, constants: Any, props: Any) -> Path:
    import onnx
    from onnx import helper

    graph = helper.make_graph(nodes, "toy", [given], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, props)
    onnx.save(model, str(path))
    return path


def write_video(
    path: Path, frames: int = 12, hw: Tuple[int, int] = (48, 64), noise: bool = False, fps: float = 25.0
) -> Path:
    """A video whose frame i is grey with brightness 10 * i modulo 250, or noise; mp4 or avi by its suffix."""
    fourcc = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), fourcc, fps, (hw[1], hw[0]))
    assert writer.isOpened()
    random = np.random.default_rng(0)
    for index in range(frames):
        grey = np.full((*hw, 3), 10 * index % 250, np.uint8)
        writer.write(random.integers(0, 256, (*hw, 3), np.uint8) if noise else grey)
    writer.release()
    return path


def frames_of(path: Path) -> List[np.ndarray[Any, Any]]:
    """Every frame that can really be decoded."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        ok, frame = capture.read()
        if not ok:
            capture.release()
            return frames
        frames.append(frame)


class ToyEngine:
    """Labels = blue channel modulo 11. `before(call_number)` runs first in each `infer` and may block or raise."""

    def __init__(self, before: Callable[[int], None] = lambda call: None) -> None:
        self.spec, self.name, self.backend, self.device, self.precision = SPEC, "toy", "toy 1", "CPU", "fp32"
        self.threads: Optional[int] = 1
        self.batch, self.frame_hw = 1, HW
        self._before, self.calls, self.closed = before, 0, False

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        call, self.calls = self.calls, self.calls + 1
        self._before(call)
        return batch[..., 0] % 11

    def close(self) -> None:
        self.closed = True


class OverlappingEngine(ToyEngine):
    """Labels = blue channel modulo 11 of what lies in the engine's buffers when they are asked for.

    `before(call_number)` runs first in each `begin`. `deepest`: how many frames were under way at once.
    """

    def __init__(self, before: Callable[[int], None] = lambda call: None) -> None:
        super().__init__(before)
        self._buffers = [np.zeros((1, *HW, 3), np.uint8) for _ in range(2)]
        self._labels = [np.zeros((1, *HW), np.uint8) for _ in range(2)]
        self._under_way: List[int] = []
        self.deepest, self.log = 0, []  # type: ignore[var-annotated]

    @property
    def staging(self) -> np.ndarray[Any, Any]:
        assert len(self._under_way) < 2
        return self._buffers[0 if 0 not in self._under_way else 1]

    def begin(self, batch: np.ndarray[Any, Any]) -> None:
        self._before(self.calls)
        self.calls += 1
        assert batch is self.staging, "what was preprocessed elsewhere would have to be copied"
        self._under_way.append(0 if 0 not in self._under_way else 1)
        self.deepest = max(self.deepest, len(self._under_way))
        self.log.append("begin")

    def finish(self) -> np.ndarray[Any, Any]:
        if not self._under_way:
            raise RuntimeError("finish() without begin()")
        index = self._under_way.pop(0)
        self._labels[index][...] = self._buffers[index][..., 0] % 11
        self.log.append("finish")
        return self._labels[index]

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.begin(batch)
        return self.finish()


class ToySource(Source):
    """Frame i is all i; `before(i)` runs first in each read and may block, raise, or return "end"."""

    def __init__(self, frames: int, live: bool = False, before: Callable[[int], Any] = lambda index: None) -> None:
        self.name, self.live, self.fps, self.size_hw, self.frame_count = "toy", live, 25.0, HW, frames
        self._before, self._next, self.closed = before, 0, False

    def read(self, out: Optional[np.ndarray[Any, Any]] = None) -> Optional[Captured]:
        import time

        if self._before(self._next) == "end" or self._next >= (self.frame_count or 0):
            return None
        frame = out if out is not None else np.empty((*HW, 3), np.uint8)
        frame[:] = self._next % 256
        self._next += 1
        return frame, time.perf_counter_ns()

    def close(self) -> None:
        self.closed = True


class ToySink(Sink):
    """Remembers (index, label value); `before(index)` runs first and may raise."""

    def __init__(self, before: Callable[[int], None] = lambda index: None) -> None:
        self._before, self.seen, self.closed = before, [], 0  # type: ignore[var-annotated]

    def write(self, image: Any, labels: Any, index: int, t_capture_ns: int) -> None:
        self._before(index)
        assert (labels == labels[0, 0]).all(), "a frame was overwritten while it was under way"
        self.seen.append((index, int(labels[0, 0])))

    def close(self) -> None:
        self.closed += 1


def run_guarded(loop: Any, timeout_s: float = 60.0) -> Any:
    """`loop.run()` in a thread, so that a deadlock fails the test instead of hanging it."""
    box: List[Any] = []
    thread = threading.Thread(target=lambda: box.append(loop.run()), daemon=True)
    thread.start()
    thread.join(timeout_s)
    assert box, "the loop hangs"
    return box[0]


def raise_at(number: int, error: BaseException) -> Callable[[int], None]:
    """A `before` that raises `error` at call `number`."""

    def before(call: int) -> None:
        if call == number:
            raise error

    return before
