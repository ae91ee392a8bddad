"""Which candidate is fastest, as far as the measurements can tell. Standard library only; knows no engine.

Candidates take turns, one turn each in every round, so that what the clocks do in a round hits all alike. Compared are
the medians of two turns of one round; the spread of these ratios over the rounds says how sure a comparison is.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence

# Student's t, 97.5 %, by degrees of freedom; from the last on the normal distribution's
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
STUDENT_FAR = 2.12
MARGIN = 0.02  # share of the time below which a difference is not worth a word
HOPELESS = 1.5  # a candidate whose fastest frames take so many times another's median does not come back
SURE = 2  # common rounds without which nobody is given up: one turn may be anyone's bad luck
TINY = 1e-6  # milliseconds; below it is no clock's tick

Turns = Mapping[int, Sequence[float]]  # round → milliseconds of each timed frame of the turn in it


@dataclass(frozen=True)
class Ratio:
    """The time of one candidate over another's: `value`, 95 % interval `low`..`high`, from `rounds` common rounds."""

    value: float
    low: float
    high: float
    rounds: int

    @property
    def surely_faster(self) -> bool:
        """By more than a hair, and not by chance."""
        return self.high < 1.0 and self.value <= 1.0 - MARGIN

    @property
    def surely_slower(self) -> bool:
        return self.low > 1.0 + MARGIN


def ratio(turns: Turns, other: Turns) -> Optional[Ratio]:
    """The first one's time over the other's; None without a common round. One round tells nothing of the spread."""
    common = sorted(set(turns) & set(other))
    if not common:
        return None
    logs = [math.log(_median(turns[each]) / _median(other[each])) for each in common]
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), 0.0, math.inf, 1)
    far = STUDENT[len(logs) - 2] if len(logs) - 2 < len(STUDENT) else STUDENT_FAR
    half = far * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def fastest(turns: Mapping[str, Turns]) -> Optional[str]:
    """The name that no other beats in their common rounds; of those without a common round the smaller median counts.
    None if nothing was measured."""
    leader: Optional[str] = None
    for name in turns:
        if turns[name] and (leader is None or _faster(turns[name], turns[leader])):
            leader = name
    return leader


def _faster(turns: Turns, other: Turns) -> bool:
    found = ratio(turns, other)
    return found.value < 1.0 if found is not None else _overall(turns) < _overall(other)


def hopeless(turns: Turns, leader: Turns) -> bool:
    """Whether even the fastest frame of every common turn takes `HOPELESS` times the leader's median."""
    common = set(turns) & set(leader)
    return len(common) >= SURE and all(min(turns[each]) > HOPELESS * _median(leader[each]) for each in common)


def far_apart(slow: Turns, fast: Turns) -> bool:
    """The same for two that took too few turns together: even the slow one's fastest frame takes `HOPELESS` times the
    other's median."""
    if not slow or not fast or len(set(slow) & set(fast)) >= SURE:
        return False
    return min(all_frames(slow)) > HOPELESS * statistics.median(all_frames(fast))


def surely_ahead(turns: Turns, other: Turns) -> bool:
    """Whether all that was measured of both leaves no doubt that the first is faster."""
    found = ratio(turns, other)
    return far_apart(other, turns) or hopeless(other, turns) or (found is not None and found.surely_faster)


def contenders(turns: Mapping[str, Turns]) -> List[str]:
    """Those that may still be the fastest, the leader first. Computed from the turns alone, so that who was behind a
    leader that is then barred comes back by itself."""
    leader = fastest(turns)
    if leader is None:
        return list(turns)
    return [leader, *(name for name in turns if name != leader and not _behind(turns[name], turns[leader]))]


def _behind(turns: Turns, leader: Turns) -> bool:
    found = ratio(turns, leader)
    return found is not None and (found.surely_slower or hopeless(turns, leader))


@dataclass(frozen=True)
class Decision:
    """winner: its name. best_exact: the fastest with float32's labels. ratios: each candidate's time over the
    winner's; one that had no round in common with it is missing."""

    winner: str
    best_exact: Optional[str]
    ratios: Dict[str, Ratio]


def decided(turns: Mapping[str, Turns], exact: Sequence[str]) -> Optional[Decision]:
    """The winner among candidates that are all allowed; None if none was measured.

    What computes with fewer bits changes labels, so it wins only if it is surely faster than the fastest of `exact`, or
    that one is hopeless beside it or, where the time did not suffice for rounds, far behind. Without such a one
    measured, the fastest wins.
    """
    best = fastest({name: turns[name] for name in turns if name in exact})
    if best is None:
        winner = fastest(turns)
    else:
        ahead = [name for name in turns if name not in exact and surely_ahead(turns[name], turns[best])]
        winner = fastest({name: turns[name] for name in (best, *ahead)})
    if winner is None:
        return None
    ratios = {name: found for name in turns for found in [ratio(turns[name], turns[winner])] if found is not None}
    return Decision(winner, best, ratios)


def percentile(values: Sequence[float], share: float) -> float:
    """Linearly interpolated, `share` in 0..1; `values` must not be empty."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def all_frames(turns: Turns) -> List[float]:
    return [value for each in sorted(turns) for value in turns[each]]


def spread(turns: Turns) -> float:
    """How far the medians of the turns lie apart: 90th over 10th percentile, 1 for fewer than three turns."""
    medians = [_median(turn) for turn in turns.values()]
    return percentile(medians, 0.9) / percentile(medians, 0.1) if len(medians) > 2 else 1.0


def _median(turn: Sequence[float]) -> float:
    return max(statistics.median(turn), TINY)


def _overall(turns: Turns) -> float:
    return statistics.median([_median(turn) for turn in turns.values()])
