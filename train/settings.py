"""Everything that decides how a training run goes, in one frozen record that is stored with the run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Optional

from gradseg.base.errors import GradsegError
from gradseg.train.feed.augment import PRESETS
from gradseg.train.schedules import ALPHA_SCHEDULES, Phase, plan_phases

WEIGHTINGS = ("none", "enet", "median")  # of classes in the loss
PRECISIONS = ("32", "bf16-mixed", "16-mixed")


class Settings:
    """What the frozen dataclasses of a run's settings share."""

    @staticmethod
    def check(
        words: Iterable[tuple[str, Optional[str], Iterable[Optional[str]]]],
        numbers: Iterable[tuple[str, Optional[float], bool, str]],
    ) -> None:
        """GradsegError for the first (option, word, those known) and (option, number, whether it fits, need) amiss."""
        for name, text, known in words:
            if text not in known:
                raise GradsegError(f"--{name} {text!r}: one of {', '.join(each for each in known if each)}")
        for name, number, fits, need in numbers:
            if not fits:
                raise GradsegError(f"--{name} {number}: must be {need}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        raw = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in raw.items()}


@dataclass(frozen=True)
class FitSettings(Settings):
    """Settings of one run; sizes are (height, width) in pixels, rates are per optimiser step.

    size: what the network sees (None: the first frame's size, rounded down to what fits). crop: training crop (None:
    size). class_power softens the class weights; jaccard weighs the soft Jaccard loss beside the cross-entropy.
    alpha_until: share of the encoder phase after which α is 0. ema: decay of the averaged weights that are evaluated
    and saved (0: off). batch is per process. init: a checkpoint to start from.
    """

    arch: str
    data: str
    val: Optional[str] = None
    init: Optional[str] = None
    epochs: int = 150
    encoder_epochs: Optional[int] = None
    decoder_epochs: Optional[int] = None
    direct: bool = False
    batch: int = 8
    size: Optional[tuple[int, int]] = None
    crop: Optional[tuple[int, int]] = None
    augment: str = "full"
    class_weights: str = "enet"
    class_power: float = 0.7
    jaccard: float = 0.5
    lr: float = 2e-3
    weight_decay: float = 1e-4
    ema: float = 0.998
    dropout: float = 1.0
    alpha_schedule: str = "linear"
    alpha_until: float = 0.6
    precision: str = "32"
    seed: int = 0
    limit: Optional[int] = None
    val_limit: Optional[int] = None
    val_every: int = 1

    def __post_init__(self) -> None:
        words = (
            ("augment", self.augment, PRESETS),
            ("class-weights", self.class_weights, WEIGHTINGS),
            ("alpha-schedule", self.alpha_schedule, ALPHA_SCHEDULES),
            ("precision", self.precision, PRECISIONS),
        )
        numbers = (
            ("batch", self.batch, self.batch >= 1, "at least 1"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
            ("encoder-epochs", self.encoder_epochs, (self.encoder_epochs or 0) >= 0, "0 or more"),
            ("decoder-epochs", self.decoder_epochs, (self.decoder_epochs or 0) >= 0, "0 or more"),
            ("val-every", self.val_every, self.val_every >= 1, "at least 1"),
            ("lr", self.lr, self.lr > 0, "above 0"),
            ("weight-decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
            ("jaccard", self.jaccard, self.jaccard >= 0, "0 or more"),
            ("dropout", self.dropout, 0 <= self.dropout <= 3, "0 to 3"),
            ("ema", self.ema, 0 <= self.ema < 1, "0 or more and below 1"),
            ("alpha-until", self.alpha_until, 0 < self.alpha_until <= 1, "above 0, at most 1"),
        )
        self.check(words, numbers)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise GradsegError(f"--{field.name.replace('_', '-')} {value}: must be a finite number")
        self.phases()

    def phases(self) -> list[Phase]:
        return plan_phases(self.epochs, self.encoder_epochs, self.decoder_epochs, self.direct)

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """'name: stored → now' for every setting that differs from a stored run's."""
        return [
            f"{key}: {stored.get(key)} → {value}" for key, value in self.to_dict().items() if stored.get(key) != value
        ]
