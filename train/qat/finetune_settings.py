"""Everything that decides how a fine-tuning run goes, in one frozen record that is stored with the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from gradseg.base.errors import GradsegError
from gradseg.base.options import METHODS
from gradseg.calibration.qdq.targets import TARGETS
from gradseg.train.feed.augment import PRESETS
from gradseg.train.settings import Settings

if TYPE_CHECKING:
    from gradseg.train.qat.sparsity import Sparsity

SCALES = ("learned", "fixed")


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """Settings of one run; sizes are (height, width) in pixels.

    arch: of a bare state dict. size: what the network sees (None: the checkpoint's).
    target: whose INT8 is trained for (None: none, float). scales: "learned" steps, or "fixed" as calibrated.
    power_of_two: activation scales are, even where the target does not want it. sparsity: "0.6" or "2:4". lr: a step's
    change of a weight relative to the root mean square of its layer's weights. distill: weight of the divergence from
    the float network's probabilities. calib_frames, method: how the scales to start from are calibrated, on `data`.
    prune_until: share of the run after which the zeros stay where they are. crop: training crop (None: half the size).
    """

    checkpoint: str
    data: str
    val: Optional[str] = None
    arch: Optional[str] = None
    size: Optional[tuple[int, int]] = None
    target: Optional[str] = None
    scales: str = "learned"
    power_of_two: bool = False
    reduce_range: bool = False
    sparsity: Optional[str] = None
    prune_until: float = 0.5
    epochs: int = 8
    lr: float = 1e-3
    batch: int = 4
    crop: Optional[tuple[int, int]] = None
    augment: str = "light"
    distill: float = 1.0
    ema: float = 0.99
    calib_frames: int = 32
    method: str = "mse"
    seed: int = 0
    limit: Optional[int] = None
    val_limit: Optional[int] = None
    val_every: int = 1

    def __post_init__(self) -> None:
        if self.target is None and self.sparsity is None:
            raise GradsegError(
                f"nothing to fine-tune for: give --target {'|'.join(TARGETS)} for INT8, --sparsity 0.6 or 2:4, or both"
            )
        self.check_words(target=(None, *TARGETS), scales=SCALES, augment=PRESETS, method=METHODS)
        self.check_numbers("at least 1", lambda v: v >= 1, "epochs", "batch", "calib_frames", "val_every")
        self.check_numbers("0 or more", lambda v: v >= 0, "seed")
        self.check_numbers("a finite number above 0", lambda v: 0 < v < math.inf, "lr")
        self.check_numbers("a finite number, 0 or more", lambda v: 0 <= v < math.inf, "distill")
        self.check_numbers("0 or more and below 1", lambda v: 0 <= v < 1, "ema")
        self.check_numbers("above 0 and below 1", lambda v: 0 < v < 1, "prune_until")
        self.wanted_sparsity()

    def wanted_sparsity(self) -> Optional[Sparsity]:
        if self.sparsity is None:
            return None
        from gradseg.train.qat.sparsity import Sparsity

        return Sparsity.parse(self.sparsity)
