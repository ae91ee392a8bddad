"""A bench without engines for tune.py's tests: candidates with given latencies, labels and mishaps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from gradseg.export.tuning.measure import Deadline, Measuring
from gradseg.export.tuning.process import CandidateError
from gradseg.export.tuning.state import Record


@dataclass
class Toy:
    """ms: of a frame. noise: its relative spread. miou: a fraction. crash: fails at this turn. share: equal labels."""

    ms: float
    precision: str = "fp32"
    miou: float = 0.6
    noise: float = 0.01
    crash: Optional[int] = None
    exact: bool = True
    engine: str = "ONNX Runtime"


@dataclass
class FakeBench:
    """In place of a `Workbench`. drift: by round, what all latencies are multiplied with. calls: (what, name)."""

    toys: Dict[str, Toy]
    drop: float = 0.5
    seed: int = 0
    seconds: float = 0.0
    calls: List[Tuple[str, str]] = field(default_factory=list)
    kept: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def running(self, record: Record) -> Any:
        return Running(self, record.base or record.name)

    def done_with(self, record: Record) -> None:
        self.calls.append(("closed", record.name))

    def check(self, record: Record, running: Any) -> None:
        record.agreement = 1.0
        if not self.toys[record.name].exact:
            record.agreement = 0.9
            raise CandidateError("its labels are equal on only 90 %", "refused")

    def score(self, record: Record, running: Any) -> Dict[str, Any]:
        self.calls.append(("score", record.name))
        self.now += self.seconds
        toy = self.toys[record.name]
        return {"miou": toy.miou, "per_class": {"road": toy.miou}, "agreement": toy.miou + 0.4, "frames": 4}

    def score_seconds(self, record: Record) -> float:
        return self.seconds

    def keep(self, record: Record) -> None:
        self.kept[record.name] = record.to_dict()

    def turns(self, name: str) -> int:
        return self.calls.count(("turn", name))


class Running:
    def __init__(self, bench: FakeBench, name: str) -> None:
        self.bench, self.name = bench, name

    def ask(self, do: str, **given: Any) -> Dict[str, Any]:
        assert do == "turn"
        toy, bench = self.bench.toys[self.name], self.bench
        bench.calls.append(("turn", self.name))
        if toy.crash is not None and bench.turns(self.name) > toy.crash:
            raise CandidateError("crashed (SIGSEGV)")
        drift = bench.random.choice((1.0, 1.0, 1.3))  # of the whole turn
        ms = [toy.ms * (1 + toy.noise * (drift - 1 + abs(bench.random.gauss(0, 1)))) for _ in range(given["frames"])]
        bench.now += (sum(ms) + given["settle"] * toy.ms) / 1e3
        return {"ms": ms, "memory": 1_000_000}

    def infer(self, batch: Any) -> Any:
        raise AssertionError("labels come from the toy")


def record(name: str, toy: Toy) -> Record:
    title = f"{toy.engine} {toy.precision}, {name}"
    made = Record(name, title, toy.engine, toy.precision, "as exported" if name == "base" else f"form of {name}", 2)
    made.files, made.digests, made.size_bytes = [f"engines/{name}.onnx"], ["0"], 1000
    return made


def measuring(bench: FakeBench, budget: Optional[float] = None) -> Measuring:
    records = [record(name, toy) for name, toy in bench.toys.items()]
    return Measuring(bench, records, "base", Deadline(budget, lambda: bench.now), lambda text: None)


def measured(toys: Dict[str, Toy], budget: Optional[float] = None, **given: Any) -> Tuple[Measuring, FakeBench]:
    """All steps, as `tuning.run` takes them."""
    bench = FakeBench(toys, **given)
    work = measuring(bench, budget)
    work.screen()
    work.settle()
    work.judge_all()
    return work, bench
