"""Everything that decides how a training run goes, in one frozen record that is stored with the run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Optional

from gradseg.base.errors import GradsegError
from gradseg.train.feed.augment import PRESETS

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


ALPHA_SCHEDULES = ("linear", "cosine", "step")
ALPHA_STEPS = 5


def alpha_at(progress: float, schedule: str, until: float) -> float:
    """α at `progress` of the encoder phase: 1 at the start, exactly 0 from `until` on, never rising.

    linear: a straight fall. cosine: slow at both ends. step: `ALPHA_STEPS` equal drops, flat in between.
    """
    if schedule not in ALPHA_SCHEDULES:
        raise GradsegError(f"alpha schedule {schedule!r}; one of {', '.join(ALPHA_SCHEDULES)}")
    if progress >= until:
        return 0.0
    share = max(0.0, progress / until)
    if schedule == "linear":
        return 1 - share
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1 - math.floor(share * (ALPHA_STEPS + 1)) / (ALPHA_STEPS + 1)


def learning_rate(progress: float, peak: float, warmup: float = 0.05) -> float:
    """A linear rise to `peak` over `warmup`, then a cosine fall to 0.1 % of it."""
    if progress < warmup:
        return peak * (0.02 + 0.98 * progress / warmup)
    share = (progress - warmup) / (1 - warmup)
    return peak * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


@dataclass(frozen=True)
class Phase:
    """One stretch of training: name "encoder", "decoder" or "joint", first epoch and number of epochs."""

    name: str
    start: int
    epochs: int

    @property
    def end(self) -> int:
        return self.start + self.epochs


def plan_phases(epochs: int, encoder: int | None, decoder: int | None, direct: bool) -> list[Phase]:
    """Splits `epochs`: by default 40 % encoder, 10 % decoder, the rest joint (each at least one); direct: all joint.

    Raises GradsegError if nothing is left for the joint phase.
    """
    if epochs < 1:
        raise GradsegError(f"--epochs {epochs}: at least 1 is needed")
    if direct:
        first, second = encoder or 0, decoder or 0
    else:
        first = max(1, round(0.4 * epochs)) if encoder is None else encoder
        second = max(1, round(0.1 * epochs)) if decoder is None else decoder
    joint = epochs - first - second
    if joint < 1 or first < 0 or second < 0:
        raise GradsegError(
            f"--epochs {epochs} leaves {joint} for the joint phase after {first} encoder and {second} decoder epochs; "
            "use more epochs, or --direct"
        )
    every = (Phase("encoder", 0, first), Phase("decoder", first, second), Phase("joint", first + second, joint))
    return [phase for phase in every if phase.epochs]
