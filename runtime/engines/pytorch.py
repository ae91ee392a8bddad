"""PyTorch engine: a checkpoint as it is, for comparison and for machines that have torch anyway."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.packages import need
from gradseg.commands import command
from gradseg.models.spec import ModelSpec
from gradseg.runtime.engines.protocol import check_batch
from gradseg.runtime.preprocess import normalised_chw


class TorchEngine:
    """A .pth checkpoint in float32, channels last, on the GPU if torch has one, else on the CPU. See `Engine`.

    Args:
        path: a GradSeg checkpoint, or a public ERFNet one with its `spec`.
        threads: of torch; a setting of the whole process. None leaves it alone.
        spec: passed on to `load_checkpoint`.
    """

    def __init__(self, path: Path, threads: Optional[int] = None, spec: Optional[ModelSpec] = None) -> None:
        elsewhere = f"export it elsewhere ({command('export/to_onnx.py', path.name)}) and run the .onnx"
        need(path, "export", "torch", instead=elsewhere)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = _load(path, spec)
        self.spec = checkpoint.spec
        self.name, self.backend, self.precision = str(path), f"torch {torch.__version__}", "fp32"
        gpu = torch.cuda.is_available()
        self.device = torch.cuda.get_device_name(0) if gpu else "CPU"
        self.threads: Optional[int] = torch.get_num_threads()
        self._torch: Any = torch
        self._device = torch.device("cuda" if gpu else "cpu")
        network: Any = checkpoint.network.eval()  # Any: torch's stubs leave memory_format out
        self._network: Any = network.to(self._device, memory_format=torch.channels_last)
        self.batch, self.frame_hw = 1, self.spec.input_hw
        height, width = self.frame_hw
        # NHWC in memory, NCHW by shape: what channels_last means, filled without a transposed copy
        self._input: np.ndarray[Any, Any] = np.zeros((1, height, width, 3), np.float32).transpose(0, 3, 1, 2)
        self._labels: np.ndarray[Any, Any] = np.zeros((1, height, width), np.uint8)

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (1, h, w, 3) → uint8 labels (1, h, w), valid until the next call."""
        check_batch(batch, 1, self.frame_hw)
        normalised_chw(batch, self.spec, out=self._input)
        with self._torch.inference_mode():
            logits = self._network(self._torch.from_numpy(self._input).to(self._device))
            labels = logits.argmax(1)
        np.copyto(self._labels, labels.cpu().numpy(), casting="unsafe")
        return self._labels

    def close(self) -> None:
        """Drops the network."""
        self._network = None


def _load(path: Path, spec: Optional[ModelSpec]) -> Any:
    """`load_checkpoint`; a bare state dict without a spec is refused with what to do here, where there is no --arch."""
    from gradseg.models.checkpoint import FORMAT, load_checkpoint, read_raw

    if spec is None and read_raw(path).get("format") != FORMAT:
        convert = command("export/to_onnx.py", path, "--arch", "erfnet")
        raise GradsegError(
            f"{path}: a state dict without a GradSeg ModelSpec inside; convert it first: "
            f"{convert} (or the architecture that it is), and run the .onnx"
        )
    return load_checkpoint(path, spec)
