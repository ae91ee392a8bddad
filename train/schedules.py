"""α, learning-rate and phase schedules as pure functions of progress in 0..1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradseg.base.errors import GradsegError

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
