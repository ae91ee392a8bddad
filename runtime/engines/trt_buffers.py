"""All that a batch needs on its way through TensorRT; an engine has two such sets, so that two can be under way."""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.runtime.cuda.memory import Cuda


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
