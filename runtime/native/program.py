"""Programs of GradSeg's native engine: tensors and operators as `runtime/native/gradseg_native.h` has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import numpy as np

from gradseg.models.spec import ModelSpec

U8, S16 = 0, 1
CONV, DEPTHWISE, UPSAMPLE, POOL, HEAD, ADD = range(6)
KINDS = ("conv", "depthwise", "upsample", "pool", "head", "add")
BLOCK = 16  # stored channels are multiples of it
EIGHTHS = 8  # what an upsampling reads is in eighths of its output's steps


@dataclass
class NativeTensor:
    """height, width: pixels. channels: as stored, a multiple of 16, 3 for the frame. halo: pixels on each side, holding
    `zero` (of the frame: b | g << 8 | r << 16). dtype: U8 or S16."""

    height: int
    width: int
    channels: int
    halo: int = 0
    dtype: int = U8
    zero: int = 0


@dataclass
class NativeOp:
    """One operator; the fields are those of `gs_op`. name: of the network's layer. Arrays: C-contiguous.

    HEAD: `output` is -1, `out_h` and `out_w` are the label map's size.
    """

    kind: int
    name: str
    input: int
    output: int
    cin: int
    cout: int
    residual: int = -1
    groups: int = 1
    out_offset: int = 0
    kh: int = 1
    kw: int = 1
    sy: int = 1
    sx: int = 1
    dy: int = 1
    dx: int = 1
    pt: int = 0
    pl: int = 0
    oy: int = 1
    py: int = 0
    ox: int = 1
    px: int = 0
    out_h: int = 0
    out_w: int = 0
    residual_scale: float = 0.0
    weight: Optional[np.ndarray[Any, Any]] = None
    scale: Optional[np.ndarray[Any, Any]] = None
    bias: Optional[np.ndarray[Any, Any]] = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates per frame, of the network's own groups; 0 for what multiplies nothing."""
        if self.weight is None:
            return 0
        pixels = self.out_h * self.out_w
        return int(self.weight.size) * (pixels // (self.kh * self.kw) if self.kind == HEAD else pixels)


@dataclass
class NativeProgram:
    """tensors[0] is the frame; ops run in order, the head last. calibration: JSON, what the scales are of."""

    spec: ModelSpec
    tensors: List[NativeTensor]
    ops: List[NativeOp]
    precision: str = "int8"
    calibration: Dict[str, Any] = field(default_factory=dict)
