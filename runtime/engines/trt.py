"""TensorRT engine: classic TensorRT 8.5 or newer (JetPack, desktop) and TensorRT-RTX, by their name-based I/O API.

uint8 frames go up and uint8 labels come down; nothing else crosses the bus. Two batches can be under way: while one is
inferred, the next is uploaded. For that there are two sets of buffers (`BufferSet`), each with a copy stream of its
own, and one inference stream, which both use.

Why no buffer is read or written too early. For batch n in set i, `begin` queues, in this order:

    copy stream i                     inference stream
    1  upload n
    2  record uploaded[i]
                                      3  wait for uploaded[i]
                                      4  inference n (a graph or plain; reads the frames, writes the labels of set i)
                                      5  record inferred[i]
    6  wait for inferred[i]
    7  download n

and `finish` lets the host wait for copy stream i, that is for 7. So 4 comes after 1 (by 3), and 7 after 4 (by 6). An
event is waited for right after it was recorded, by the same thread, so a wait never means an older record. `begin`
takes a set only when no batch is under way in it: its 7 is done, hence its 4 and its 1, and the host may write the
frames again and the device both buffers. Inferences follow each other on one stream, whichever set they use. The sets
share no copy stream: the upload of n+1 does not queue behind the download of n, which waits for inference n. After an
error or an interrupt in between, all three streams are waited for, and nothing counts as under way.

A CUDA graph has its addresses and its context's state inside: each set has its own context and its own graph,
captured on the inference stream after one plain run, in which TensorRT finishes its setup.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import deque
from pathlib import Path
from typing import Any, Deque, Dict, List, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.commands import command
from gradseg.models.spec import ModelSpec
from gradseg.runtime.cuda.memory import Cuda
from gradseg.runtime.cuda.open import open_cuda
from gradseg.runtime.engines.protocol import check_batch
from gradseg.runtime.engines.trt_library import quiet_logger
from gradseg.runtime.engines.trt_manifest import check_dla, check_plan, gpu_note, rebuild_command, spec_of


class BufferSet:
    """Page-locked and device memory for one batch and its labels, an execution context bound to them, a copy stream.

    frames, labels: page-locked uint8 (batch, H, W, 3) and (batch, H, W). frames_device, labels_device: addresses.
    copies: the stream of this set's upload and download. uploaded, inferred: events that order it with the inference
    stream. graph: this set's CUDA graph, None for plain enqueueing.
    """

    def __init__(self, cuda: Cuda, context: Any, names: Tuple[str, str], batch: int, frame_hw: Tuple[int, int]) -> None:
        self.context, self.graph = context, None  # type: Any, Any
        self.frames: np.ndarray[Any, Any] = cuda.pinned((batch, *frame_hw, 3))
        self.labels: np.ndarray[Any, Any] = cuda.pinned((batch, *frame_hw))
        self.frames_device = cuda.device_buffer(self.frames.nbytes)
        self.labels_device = cuda.device_buffer(self.labels.nbytes)
        self.copies = cuda.stream()
        self.uploaded, self.inferred = cuda.event(), cuda.event()
        for name, address in zip(names, (self.frames_device, self.labels_device)):
            if not context.set_tensor_address(name, address):
                raise RuntimeError(f"set_tensor_address failed for {name}")


def tensor_names(trt: Any, engine: Any, where: str, batch: int, frame_hw: Tuple[int, int]) -> Tuple[str, str]:
    """Names of the one input and the one output; GradsegError unless they are uint8 frames and labels of that size."""
    modes = (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = []
    for kind, mode, shape in zip(("input", "output"), modes, ((batch, *frame_hw, 3), (batch, *frame_hw))):
        ours = [name for name in names if engine.get_tensor_mode(name) == mode]
        got = tuple(engine.get_tensor_shape(ours[0])) if len(ours) == 1 else None
        if got != shape or engine.get_tensor_dtype(ours[0]) != trt.DataType.UINT8:
            raise GradsegError(f"{where}: {kind}s {ours} {got}; expected one uint8 {shape}: not a deployment-form plan")
        found.append(ours[0])
    return found[0], found[1]


def two_contexts(engine: Any) -> Tuple[Any, Any]:
    """Two execution contexts, since a captured graph belongs to its context; None where there is too little memory.

    TensorRT-RTX compiles kernels when it makes a context: the second takes the first one's from a cache.
    """
    if hasattr(engine, "create_runtime_config"):
        config = engine.create_runtime_config()
        if hasattr(config, "create_runtime_cache"):
            config.set_runtime_cache(config.create_runtime_cache())
            return engine.create_execution_context(config), engine.create_execution_context(config)
    return engine.create_execution_context(), engine.create_execution_context()


class TrtEngine:
    """A .plan with its manifest NAME.plan.json. See `engines.protocol.Engine`; not thread-safe.

    The manifest, the plan's bytes, the library and the GPU are checked before TensorRT sees the plan.

    Args:
        path: the plan.
        spec: wins over the manifest's (class names and colours; sizes are the plan's).
        cuda_graph: capture the inference as a CUDA graph, where the device's CUDA library can and TensorRT lets it.

    batch, frame_hw: how many frames of which size one call takes. uses_cuda_graph: whether inferences are graphs.

    Raises GradsegError: see `check_plan` and `open_cuda`.
    """

    def __init__(self, path: Path, spec: Optional[ModelSpec] = None, cuda_graph: bool = True) -> None:
        where = f"{path}: a TensorRT engine"
        checked = check_plan(path, where)
        manifest, self._trt = checked.manifest, checked.trt
        self.spec = spec or spec_of(path, manifest)
        self.name, self.device, self.precision = str(path), checked.gpu.name, str(manifest["precision"])
        self.backend = f"{manifest['library']} {self._trt.__version__}"
        self.threads: Optional[int] = None
        self.batch, self.frame_hw = int(manifest["batch"]), (manifest["frame_hw"][0], manifest["frame_hw"][1])
        self.uses_cuda_graph = False
        self._sets: List[BufferSet] = []
        self._under_way: Deque[BufferSet] = deque()
        self._timed: List[Any] = []
        self._stream: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._cuda: Optional[Cuda] = open_cuda(where, checked.gpu)
        try:
            with self._cuda.current():
                self._open(path, manifest, checked.data, self._cuda)
                if cuda_graph:
                    self._capture(self._cuda)
            note = gpu_note(path, manifest, checked.gpu)
            if note:
                _say(note)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, manifest: Dict[str, Any], data: bytes, cuda: Cuda) -> None:
        trt = self._trt
        self._logger, heard = quiet_logger(trt)
        try:
            self._runtime = trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:  # pybind11's "factory function returned nullptr"
            said = heard.reason() or str(error)
            raise GradsegError(
                f"{path}: {self.backend} does not start on {self.device}: {said}. Its CUDA must not be newer than the "
                f"driver's; {command('runtime/doctor.py')} shows both",
                3,
            ) from error
        core = check_dla(path, manifest, int(getattr(self._runtime, "num_DLA_cores", 0)))
        if core is not None:
            self._runtime.DLA_core = core
        if manifest["options"].get("version_compatible"):  # such a plan brings its own runtime code
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            said = f" TensorRT says: {heard.reason()}." if heard.reason() else ""
            raise GradsegError(
                f"{path}: {self.backend} on {self.device} cannot load it, though its manifest fits.{said} "
                f"Rebuild: {rebuild_command(path)}"
            )
        names = tensor_names(trt, self._engine, str(path), self.batch, self.frame_hw)
        contexts = two_contexts(self._engine)
        if None in contexts:
            raise GradsegError(f"{path}: not enough GPU memory on {self.device}; close other programs that use it", 3)
        self._stream = cuda.stream()
        self._stream_address = cuda.address_of(self._stream)
        self._timed = [cuda.event(timed=True) for _ in range(4)]
        for context in contexts:
            self._sets.append(BufferSet(cuda, context, names, self.batch, self.frame_hw))

    def _capture(self, cuda: Cuda) -> None:
        """A graph for each set, or for none: then says why, once."""
        if not cuda.graphs:
            _say(f"CUDA graphs need cuda-python (pip install cuda-python); {cuda.name} enqueues plainly")
            return
        for each in self._sets:
            self._run(each)  # TensorRT sets itself up in the first run, which a capture does not allow
            cuda.synchronise(self._stream)
        try:
            for each in self._sets:
                each.graph = cuda.capture(self._stream, functools.partial(self._enqueue, each))
            self.uses_cuda_graph = True
        except RuntimeError as error:
            _say(f"{self.name}: no CUDA graph ({error}); it is enqueued plainly")
            self._drop_graphs(cuda)
        for each in self._sets:  # whichever way it is, it is tried here rather than at the first frame
            self._run(each)
            cuda.synchronise(self._stream)

    def _drop_graphs(self, cuda: Cuda) -> None:
        for each in self._sets:
            each.graph = None
        cuda.drop_graphs()

    def _enqueue(self, each: BufferSet) -> bool:
        return bool(each.context.execute_async_v3(self._stream_address))

    def _run(self, each: BufferSet) -> None:
        """Queues one inference from and to this set's device buffers."""
        if each.graph is not None:
            self._open_cuda().launch(each.graph, self._stream)
        elif not self._enqueue(each):
            raise RuntimeError(f"{self.name}: TensorRT could not enqueue the inference")

    def _open_cuda(self) -> Cuda:
        if self._cuda is None:
            raise RuntimeError(f"{self.name}: is closed")
        return self._cuda

    def _free_set(self) -> BufferSet:
        """The set that the next batch goes through: the first one unless that is under way."""
        if len(self._under_way) == len(self._sets):
            raise RuntimeError(f"{self.name}: two batches are under way; finish() one first")
        return next(each for each in self._sets if each not in self._under_way)

    @property
    def staging(self) -> np.ndarray[Any, Any]:
        """Page-locked uint8 BGR (batch, H, W, 3) to preprocess into: the next `begin` or `infer` of it copies nothing.

        Ask for it again after each `begin`: what was begun is read from there until its `finish`.
        """
        self._open_cuda()
        return self._free_set().frames

    def begin(self, batch: np.ndarray[Any, Any]) -> None:
        """Starts uint8 BGR (batch, H, W, 3) on its way and returns; two may be under way.

        `batch` may be written again at once, unless it is `staging`.
        """
        cuda = self._open_cuda()
        check_batch(batch, self.batch, self.frame_hw)
        each = self._free_set()
        try:
            with cuda.current():
                if batch.ctypes.data != each.frames.ctypes.data:
                    np.copyto(each.frames, batch)
                cuda.upload(each.frames, each.frames_device, each.copies)
                cuda.record(each.uploaded, each.copies)
                cuda.wait_for(self._stream, each.uploaded)
                self._run(each)
                cuda.record(each.inferred, self._stream)
                cuda.wait_for(each.copies, each.inferred)
                cuda.download(each.labels_device, each.labels, each.copies)
                self._under_way.append(each)
        except BaseException:
            self._settle()
            raise

    def finish(self) -> np.ndarray[Any, Any]:
        """Waits for the batch begun first: its uint8 labels (batch, H, W), valid until the next `begin` or `infer`."""
        cuda = self._open_cuda()
        if not self._under_way:
            raise RuntimeError(f"{self.name}: finish() without begin()")
        try:
            with cuda.current():
                cuda.synchronise(self._under_way[0].copies)
            return self._under_way.popleft().labels
        except BaseException:
            self._settle()
            raise

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (batch, H, W, 3) → uint8 labels (batch, H, W), valid until the next call."""
        if self._under_way:
            raise RuntimeError(f"{self.name}: infer() while {len(self._under_way)} begun batches are not finished")
        try:
            self.begin(batch)
            return self.finish()
        except BaseException:  # an interrupt between the two
            self._settle()
            raise

    def stage_times(self, batch: np.ndarray[Any, Any]) -> Dict[str, float]:
        """Milliseconds of one batch by the GPU's clock: {"upload", "inference", "download"}, one after the other.

        RuntimeError while batches are under way.
        """
        cuda = self._open_cuda()
        check_batch(batch, self.batch, self.frame_hw)
        if self._under_way:
            raise RuntimeError(f"{self.name}: stage_times() while begun batches are not finished")
        each, (start, uploaded, inferred, downloaded) = self._sets[0], self._timed
        with cuda.current():
            if batch.ctypes.data != each.frames.ctypes.data:
                np.copyto(each.frames, batch)
            try:
                cuda.record(start, self._stream)
                cuda.upload(each.frames, each.frames_device, self._stream)
                cuda.record(uploaded, self._stream)
                self._run(each)
                cuda.record(inferred, self._stream)
                cuda.download(each.labels_device, each.labels, self._stream)
                cuda.record(downloaded, self._stream)
            finally:
                cuda.synchronise(self._stream)
            marks = (start, uploaded, inferred, downloaded)
            times = [cuda.milliseconds(a, b) for a, b in zip(marks, marks[1:])]
        return dict(zip(("upload", "inference", "download"), times))

    def _settle(self) -> None:
        """Waits for all that was queued, so that buffers may be used again; nothing is under way afterwards."""
        cuda = self._cuda
        if cuda is not None:
            with contextlib.suppress(RuntimeError), cuda.current():
                for stream in [each.copies for each in self._sets] + [self._stream]:
                    with contextlib.suppress(RuntimeError):  # after a fault on the GPU each wait reports it again
                        cuda.synchronise(stream)
        self._under_way.clear()

    def close(self) -> None:
        """Waits for what is under way and frees the GPU's memory and the page-locked memory, `staging` too."""
        cuda = self._cuda
        if cuda is None:
            return
        if self._sets:
            self._settle()
        with contextlib.suppress(RuntimeError), cuda.current():
            self._drop_graphs(cuda)  # what refers to something goes before it: graph, context, engine, runtime
            self._sets, self._timed, self._stream = [], [], None
            self._engine = None
            self._runtime = None
        cuda.close()
        self._cuda = None  # last: after an interrupt in here, another close() goes on


def _say(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)
