"""Measures candidates in turns until it is clear which are behind, and checks the labels of those in front."""

from __future__ import annotations

import datetime
import functools
import time
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence

from gradseg.base.errors import GradsegError
from gradseg.export.tuning.judge import fault
from gradseg.export.tuning.process import WARM_UP, CandidateError
from gradseg.export.tuning.state import Record
from gradseg.export.tuning.verdict import Turns, contenders, far_apart, percentile

if TYPE_CHECKING:
    from gradseg.export.tuning.bench import Workbench

TURN, SETTLE = 10, 3  # timed frames of a turn, untimed ones before them
ROUNDS = 20
LEAST = 3  # turns of each before anyone's labels are checked for being in front
LONG_TURN_MS = 1000.0  # a turn of slow frames has fewer of them
FEWEST = 3
FAR = 4.0  # at the first look: the fastest frame takes so many times another's median
LEFT = 0.5  # share of the budget that measuring has at least, however long preparing took
BUILT, SCREENED = 0.5, 0.65  # shares of the time after which nothing more is built, or looked at first
PLACED = 3  # of how many in front other ways of placing threads are tried

Say = Callable[[str], None]


class Deadline:
    """What is left of --time-budget; without one there is always time."""

    def __init__(self, seconds: Optional[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin = self.prepared = clock()
        self.end = None if seconds is None else self.begin + seconds
        self.ran_out = False

    def allows(self, seconds: float = 0.0, until: float = 1.0) -> bool:
        """Whether so much more may be begun, to end within the share `until` of what was left when all was prepared;
        remembers a no."""
        fits = self.holds(seconds, until)
        self.ran_out = self.ran_out or not fits
        return fits

    def holds(self, seconds: float, until: float = 1.0) -> bool:
        """As `allows`, only asked."""
        return self.end is None or self._clock() + seconds <= self.prepared + until * (self.end - self.prepared)

    def mark_prepared(self) -> None:
        """Preparing is over, which cannot be cut short; what is left is shared out from here. That may be nothing on a
        slow machine: `LEFT` of the budget is granted then."""
        self.prepared = self._clock()
        if self.end is not None:
            self.end = max(self.end, self.prepared + LEFT * (self.end - self.begin))

    @property
    def spent(self) -> float:
        return self._clock() - self.begin


class Measuring:
    """Screening, rounds and scores of records whose engines are built. Whatever it learns stands in the records."""

    def __init__(self, bench: Workbench, records: Sequence[Record], base: str, deadline: Deadline, say: Say) -> None:
        self.bench, self.deadline, self.say = bench, deadline, say
        self.records: Dict[str, Record] = {record.name: record for record in records}
        self.base = self.records[base]
        self.rounds = ROUNDS
        self._pace = 1.0  # seconds that a round took for one that it should take by the first looks
        for record in self._standing():  # what was measured before, by the drop that is allowed now
            self._rule(record)

    def screen(self, always: bool = False) -> None:
        """Opens each once: labels on a few frames and one turn; who is far behind takes no part in the rounds.

        always: also if the time is over. Where time is limited, the labels of who is clearly in front are checked at
        once, so that it is not lost to what the others take.
        """
        for record in self._standing():
            if not record.screening and (always or record is self.base or self.deadline.allows(until=SCREENED)):
                self.say(f"first look: {record.title}")
                self._guarded(record, self._first_look)
                if self._far_behind(record):
                    self.bench.done_with(record)
                if self.deadline.end is not None and not self.base.state:
                    self._judge_clear_leader()
        if self.base.state:
            raise GradsegError(f"FP32 as exported cannot be measured here: {self.base.reason}")

    def _judge_clear_leader(self) -> None:
        while True:
            leader, *others = self._looked()
            rivals = [each for each in others if not self._may_lack(each)]
            clear = all(far_apart({0: each.screening}, {0: leader.screening}) for each in rivals)
            if not self._may_lack(leader) or not clear or not self.deadline.allows(self._scoring(leader)):
                return
            self.judge(leader)

    def _looked(self) -> List[Record]:
        """Those that had their first look, the fastest in it first."""
        looked = [record for record in self._standing() if record.screening]
        return sorted(looked, key=lambda each: percentile(each.screening, 0.5))

    def _first_look(self, record: Record) -> None:
        running = self.bench.running(record)
        if record.agreement is None:
            self.bench.check(record, running)
        found = running.ask("turn", settle=WARM_UP, frames=TURN if record is self.base else self._frames())
        record.screening = [float(value) for value in found["ms"]]
        record.memory_bytes = int(found["memory"])

    def _frames(self, record: Optional[Record] = None) -> int:
        """Timed frames of a turn, by how long the record's frames take."""
        times = (record or self.base).screening
        return int(min(TURN, max(FEWEST, LONG_TURN_MS / max(percentile(times, 0.5), 1e-3)))) if times else TURN

    def settle(self) -> None:
        """Rounds of turns until the contenders have enough of them, the labels of the leader checked on the way."""
        number = max((max(each.turns, default=0) for each in self.records.values()), default=0)
        while True:
            names = self._that_fit(self.contending())
            least = min((len(self.records[name].turns) for name in names), default=self.rounds)
            leader = self.records[names[0]] if names else self.base
            due = least >= LEAST or not self.deadline.holds(self._round_seconds(names) + self._scoring(leader))
            if due and self._may_lack(leader) and self.deadline.allows(self._scoring(leader)):
                self.judge(leader)
                continue
            if least >= self.rounds or not self.deadline.allows(self._round_seconds(names)):
                return
            number += 1
            expected, begun = self._round_seconds(names) / self._pace, self.deadline.spent
            self.say(f"round {least + 1} of {self.rounds}: {len(names)} still in question")
            order = [name for name in self.records if name in names]
            for name in order if number % 2 else order[::-1]:  # nobody is always measured after the same one
                record = self.records[name]
                self._guarded(record, functools.partial(self._turn, number=number))
            self._pace = max(1.0, (self.deadline.spent - begun) / max(expected, 1e-3))
            for record in self._standing():
                if record.name not in names:
                    self.bench.done_with(record)

    def _that_fit(self, names: List[str]) -> List[str]:
        """Where time is short, the slowest at the first look go, until a few rounds of the rest and the labels of two
        fit; a budget that gives everybody one turn and nobody an answer is spent for nothing."""
        kept = [record.name for record in self._looked() if record.name in names]
        needed = [*kept[:1], *names[:1], *self._yardstick()[:1]]
        while True:
            begun = min((len(self.records[name].turns) for name in kept), default=0)
            scored = sum(self._scoring(self.records[name]) for name in kept[:2] if not self.records[name].score)
            more = [name for name in kept if name not in needed]
            if not more or self.deadline.holds(max(1, LEAST - begun) * self._round_seconds(kept) + scored):
                return [name for name in names if name in kept]
            kept.remove(more[-1])
            self.deadline.ran_out = True

    def _turn(self, record: Record, number: int) -> None:
        running = self.bench.running(record)
        found = running.ask("turn", settle=SETTLE, frames=self._frames(record))
        record.turns[number] = [float(value) for value in found["ms"]]
        record.memory_bytes = max(record.memory_bytes, int(found["memory"]))
        record.measured = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0).isoformat()

    def judge_all(self) -> None:
        """The scores that are still missing, those in front first: for the page, and for the verdict of a repeat."""
        for record in [each for each in self._looked() if each.score is None and not each.base]:
            if self.deadline.allows(self._scoring(record)):
                self.judge(record)
        for record in self._standing():
            owner = self.records.get(record.base)
            if owner is not None and owner.score is not None and record.screening:
                self.judge(record)

    def judge(self, record: Record) -> None:
        """Its score, after the base's; a candidate that loses too much is refused."""
        if self.base.score is None:
            self._guarded(self.base, self._score)
            if self.base.state:
                raise GradsegError(f"FP32 as exported cannot be measured here: {self.base.reason}")
        if record.score is None:
            self._guarded(record, self._score)
        self._rule(self.records.get(record.base, record))  # its labels were looked at, too
        self._rule(record)

    def _score(self, record: Record) -> None:
        self.say(f"labels: {record.title}")
        owner = self.records.get(record.base, record)
        if owner.score is None:
            owner.score = self.bench.score(owner, self.bench.running(owner))
            self.bench.keep(owner)
        record.score = owner.score

    def _rule(self, record: Record) -> None:
        if record.score is None or self.base.score is None or record.state or record.exact:
            return
        why = fault(record.score, self.base.score, self.bench.drop)
        if why:
            record.state, record.reason = "refused", why
            self.bench.done_with(record)
            self.bench.keep(record)

    def contending(self) -> List[str]:
        """Names of those that may still win, the leader first; until the rounds begin, all but the far behind."""
        turns = self.turns()
        if not any(turns.values()):
            near = [record.name for record in self._looked() if not self._far_behind(record)]
            return list(dict.fromkeys([*near, *self._yardstick()]))
        late = [name for name, found in turns.items() if not found and not self._far_behind(self.records[name])]
        seen = {name: found for name, found in turns.items() if found}
        return list(dict.fromkeys([*contenders(seen), *late, *self._yardstick()]))

    def _yardstick(self) -> List[str]:
        """Those that others are said to be so much faster than, until they have had a few turns: the fastest exact one,
        and within each engine that has both, the fastest exact and the fastest INT8 one."""
        looked = [record for record in self._looked() if not record.base]
        wanted = [record for record in looked if record.exact][:1]
        for engine in {record.engine: None for record in looked}:
            own = [record for record in looked if record.engine == engine]
            pair = [next((e for e in own if e.exact), None), next((e for e in own if e.precision == "int8"), None)]
            wanted += [each for each in pair if each is not None and None not in pair]
        return list(dict.fromkeys(each.name for each in wanted if len(each.turns) < LEAST))

    def turns(self) -> Dict[str, Turns]:
        return {record.name: record.turns for record in self._standing() if record.screening}

    def front(self) -> List[str]:
        """Names of the few that were fastest at the first look, variants aside."""
        return [each.name for each in self._looked() if not each.base][:PLACED]

    def add(self, records: Sequence[Record]) -> None:
        """More candidates, built already: variants of those in front."""
        for record in records:
            self._rule(self.records.setdefault(record.name, record))

    def _standing(self) -> List[Record]:
        return [record for record in self.records.values() if not record.state]

    def _far_behind(self, record: Record) -> bool:
        """By the first looks alone, which were taken one after the other: only what cannot be chance."""
        medians = [percentile(each.screening, 0.5) for each in self._standing() if each.screening]
        return bool(record.screening) and min(record.screening) > FAR * min(medians, default=0.0)

    def _may_lack(self, record: Record) -> bool:
        return not record.exact and record.score is None

    def _scoring(self, record: Record) -> float:
        missing = {each.name: each for each in (self.base, self.records.get(record.base, record)) if not each.score}
        return sum(self.bench.score_seconds(each) for each in missing.values())

    def _round_seconds(self, names: Sequence[str]) -> float:
        looked = [self.records[name] for name in names if self.records[name].screening]
        frames = sum((self._frames(each) + SETTLE) * percentile(each.screening, 0.5) for each in looked)
        return self._pace * frames / 1e3

    def _guarded(self, record: Record, work: Callable[[Record], None]) -> None:
        """Does it and keeps the record; a failure rules the candidate out and ends its process."""
        try:
            work(record)
        except CandidateError as error:
            record.state, record.reason = error.state, str(error)
            self.bench.done_with(record)
        self.bench.keep(record)
