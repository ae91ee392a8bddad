"""Everything that decides how a training run goes, in one frozen record that is stored with the run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Mapping, Optional

from gradseg.base.errors import GradsegError
from gradseg.train.feed.augment import PRESETS

WEIGHTINGS = ("none", "enet", "median")  # of classes in the loss
PRECISIONS = ("32", "bf16-mixed", "16-mixed")


class Settings:
    """What the frozen dataclasses of a run's settings share."""

    def check_words(self, **known: Iterable[Optional[str]]) -> None:
        """GradsegError for the first of these fields that is no word known."""
        for name, words in known.items():
            if getattr(self, name) not in words:
                each = ", ".join(word for word in words if word)
                raise GradsegError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: one of {each}")

    def check_numbers(self, need: str, fits: Callable[[Any], bool], *names: str) -> None:
        """GradsegError for the first of these fields that is given and does not fit."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise GradsegError(f"--{name.replace('_', '-')} {value}: must be {need}")

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
        self.check_words(
            augment=PRESETS, class_weights=WEIGHTINGS, precision=PRECISIONS, alpha_schedule=ALPHA_SCHEDULES
        )
        self.check_numbers("at least 1", lambda v: v >= 1, "batch", "val_every")
        least_0 = ("seed", "encoder_epochs", "decoder_epochs", "weight_decay", "jaccard")
        self.check_numbers("0 or more", lambda v: v >= 0, *least_0)
        self.check_numbers("above 0", lambda v: v > 0, "lr")
        self.check_numbers("0 to 3", lambda v: 0 <= v <= 3, "dropout")
        self.check_numbers("0 or more and below 1", lambda v: 0 <= v < 1, "ema")
        self.check_numbers("above 0, at most 1", lambda v: 0 < v <= 1, "alpha_until")
        self.check_numbers("a finite number", lambda v: not isinstance(v, float) or math.isfinite(v), *vars(self))
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
