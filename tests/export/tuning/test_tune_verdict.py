"""tune.py's rule: who is behind, who wins, and what is said of it."""

from __future__ import annotations

import math
import random
from typing import Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_toys import Toy, measured, record

from gradseg.export.tuning.state import Record
from gradseg.export.tuning.verdict import (
    MARGIN,
    Turns,
    all_frames,
    contenders,
    decided,
    far_apart,
    fastest,
    hopeless,
    percentile,
    ratio,
    spread,
)
from gradseg.export.tuning.words import decision_of, ordered, outcome, text_table, verdict
from gradseg.export.tuning.worker import rounding_share, times_of

MS = st.floats(0.5, 500.0)
TURN = st.lists(MS, min_size=1, max_size=6)
TURNS = st.dictionaries(st.integers(1, 8), TURN, min_size=1, max_size=8)
FIELD = st.dictionaries(st.sampled_from("abcdef"), TURNS, min_size=1, max_size=6)


def steady(ms: float, rounds: int = 8, noise: float = 0.0, seed: int = 0) -> Turns:
    source = random.Random(seed)
    return {n: [ms * (1 + noise * source.random()) for _ in range(5)] for n in range(1, rounds + 1)}


def test_drift_that_hits_all_alike_cancels() -> None:
    clocks = {n: 1 + n / 4 for n in range(1, 9)}  # three times slower at the end
    slow = {n: [12.0 * clocks[n]] * 5 for n in clocks}
    fast = {n: [10.0 * clocks[n]] * 5 for n in clocks}
    found = ratio(slow, fast)
    assert found is not None and found.value == pytest.approx(1.2) and found.surely_slower
    assert (found.low, found.high) == (pytest.approx(1.2), pytest.approx(1.2))


def test_without_common_rounds_only_a_wide_gap_decides() -> None:
    first_look, rounds = {0: [60.0, 61.0, 66.0]}, {1: [17.0, 16.0, 18.0], 2: [17.0] * 3}
    assert far_apart(first_look, rounds) and not far_apart(rounds, first_look)
    found = decided({"float": first_look, "int8": rounds}, ["float"])
    assert found is not None and (found.winner, found.best_exact) == ("int8", "float")
    near = {1: [45.0] * 3, 2: [46.0] * 3}
    assert not far_apart(first_look, near)
    found = decided({"float": first_look, "int8": near}, ["float"])
    assert found is not None and found.winner == "float"
    assert far_apart(first_look, {0: [1.0]})  # one round in common, and there is nothing else to go by
    assert not far_apart({**first_look, 1: [60.0]}, {0: [1.0], 1: [1.0]})  # rounds decide


def test_one_round_proves_nothing() -> None:
    found = ratio({1: [5.0]}, {1: [10.0], 2: [9.0]})
    assert found is not None and (found.value, found.rounds) == (pytest.approx(0.5), 1)
    assert not found.surely_faster and not found.surely_slower
    assert ratio({1: [5.0]}, {2: [5.0]}) is None


@given(TURNS, TURNS)
def test_ratio_is_symmetric_and_its_interval_holds_it(first: Turns, second: Turns) -> None:
    there, back = ratio(first, second), ratio(second, first)
    if there is None or back is None:
        assert there is back is None
        return
    assert there.value * back.value == pytest.approx(1.0)
    assert there.low <= there.value <= there.high
    assert there.surely_faster == (there.high < 1 and there.value <= 1 - MARGIN)
    if there.rounds > 1 and math.isfinite(there.high):
        assert there.low * back.high == pytest.approx(1.0, rel=1e-6) or there.low == 0.0


@given(FIELD, st.floats(0.1, 10.0))
def test_the_unit_of_time_decides_nothing(field: Dict[str, Dict[int, List[float]]], factor: float) -> None:
    scaled = {name: {n: [v * factor for v in turn] for n, turn in turns.items()} for name, turns in field.items()}
    exact = [name for name in field if name in "abc"]
    before, after = decided(field, exact), decided(scaled, exact)
    assert before is not None and after is not None
    for name in (before.winner, after.winner):  # rounding may swap those that are level
        found = ratio(field[name], field[before.winner])
        assert found is None or found.value == pytest.approx(1.0) or name == before.winner


@given(FIELD, st.sets(st.sampled_from("abcdef")))
def test_fewer_bits_win_only_if_surely_faster(field: Dict[str, Dict[int, List[float]]], exact: set[str]) -> None:
    found = decided(field, sorted(exact))
    assert found is not None and found.winner in field
    present = exact & set(field)
    assert (found.best_exact in present) if present else found.best_exact is None
    if present and found.winner not in exact:
        best = found.best_exact
        assert best is not None
        against = ratio(field[found.winner], field[best])
        assert against is not None and against.value < 1 and against.rounds > 1
        assert against.surely_faster or hopeless(field[best], field[found.winner])
    for name, each in found.ratios.items():
        assert each.rounds == len(set(field[name]) & set(field[found.winner]))


@given(FIELD)
def test_the_leader_is_a_contender_and_the_hopeless_are_not(field: Dict[str, Dict[int, List[float]]]) -> None:
    names = contenders(field)
    assert names[0] == fastest(field) and set(names) <= set(field)
    slow = {n: [10 * max(max(turn) for turn in field[names[0]].values())] for n in field[names[0]]}
    more = contenders({**field, "slow": slow})
    assert ("slow" not in more) == (len(slow) > 1)  # one turn may be bad luck


def test_the_level_stay_and_the_slower_go() -> None:
    field = {"a": steady(10, noise=0.1), "b": steady(10, noise=0.1, seed=1), "c": steady(12, noise=0.1, seed=2)}
    assert sorted(contenders(field)) == ["a", "b"]
    assert contenders({"a": {}, "b": {}}) == ["a", "b"] and fastest({"a": {}}) is None and decided({}, []) is None


@pytest.mark.parametrize(("int8", "winner"), [(8.0, "int8"), (9.95, "float"), (10.0, "float"), (14.0, "float")])
def test_int8_is_never_slower_than_float(int8: float, winner: str) -> None:
    field = {"float": steady(10, noise=0.1), "int8": steady(int8, noise=0.1, seed=3)}
    found = decided(field, ["float"])
    assert found is not None and (found.winner, found.best_exact) == (winner, "float")


def test_noise_that_hides_the_difference_leaves_float() -> None:
    source = random.Random(5)
    noisy = {n: [9.0 * source.choice((0.7, 1.0, 1.8))] * 3 for n in range(1, 9)}
    found = decided({"float": steady(10), "int8": noisy}, ["float"])
    assert found is not None and found.winner == "float"


@given(st.lists(MS, min_size=1), st.floats(0, 1))
def test_percentile_lies_within(values: List[float], share: float) -> None:
    assert min(values) <= percentile(values, share) <= max(values)
    assert percentile(values, 0.0) == min(values) and percentile(values, 1.0) == max(values)


def test_spread_of_turns() -> None:
    assert spread(steady(10)) == pytest.approx(1.0) and spread({1: [1.0], 2: [9.0]}) == 1.0
    assert spread({n: [10.0 * (1 + n % 2)] for n in range(1, 9)}) == pytest.approx(2.0)
    assert all_frames({2: [3.0], 1: [1.0, 2.0]}) == [1.0, 2.0, 3.0]


# ---- in words


def told(toys: Dict[str, Toy], **given: float) -> str:
    work, _ = measured(toys, **given)  # type: ignore[arg-type]
    records = list(work.records.values())
    decision = decision_of(records)
    assert decision is not None
    lines = verdict(records, decision, work.base)
    assert len(text_table(records, decision, work.base)) == 1 + sum(bool(each.screening) for each in records)
    assert all(outcome(each, decision) for each in ordered(records))
    return "\n".join(lines)


def test_words_for_int8_that_pays() -> None:
    said = told({"base": Toy(20), "rows": Toy(18), "q": Toy(9, "int8", 0.598)})
    assert said.startswith("ONNX Runtime int8, q won: 9.")
    assert "2.2" in said.splitlines()[0] and "mIoU 59.80 (−0.20 points)" in said
    assert "it takes 0.50 (" in said and "of the time of the fastest in float32, ONNX Runtime fp32, rows" in said
    assert "INT8 in ONNX Runtime takes 0.50 of the time of its best float32 form" in said
    assert "in ONNX Runtime float32 is fastest with form of rows: 1.1" in said


def test_words_for_int8_that_does_not_pay() -> None:
    said = told({"base": Toy(10), "q": Toy(13, "int8")})
    assert "ONNX Runtime fp32, base won" in said
    assert "fewer bits do not pay here: the fastest, ONNX Runtime int8, q, takes 1.30 (1.2" in said
    assert "INT8 is not worth it in ONNX Runtime here: 1.30x slower than its best float32 form\n" in f"{said}\n"


def test_words_for_what_was_thrown_out() -> None:
    toys = {"base": Toy(10), "q": Toy(5, "int8", 0.58), "wrong": Toy(4, exact=False), "bad": Toy(6, crash=0)}
    said = told(toys)
    assert "ONNX Runtime fp32, base won" in said
    assert "thrown out: ONNX Runtime int8, q: loses 2.00 points of mIoU, 0.5 are allowed" in said
    assert "thrown out: ONNX Runtime fp32, wrong: its labels are equal on only 90 %" in said
    assert "not here: ONNX Runtime fp32, bad: crashed (SIGSEGV)" in said


def test_words_for_a_difference_within_the_noise() -> None:
    said = told({"base": Toy(10, noise=0.2), "q": Toy(9.99, "int8", noise=0.2)})
    assert "base won" in said and "float32 is kept: ONNX Runtime int8, q takes " in said and "not surely less" in said


def test_words_rest_on_the_profile() -> None:
    int8, base = profiled("q", "int8", 13.0), profiled("base", "fp32", 10.0)
    int8.operators = {"QLinearConv": 6.0, "Conv": 2.0, "QuantizeLinear": 2.0, "DequantizeLinear": 2.0}
    base.operators = {"Conv": 7.0, "Relu": 1.0}
    decision = decision_of([base, int8])
    assert decision is not None
    said = "\n".join(verdict([base, int8], decision, base))
    assert "33 % of its time goes into rounding to INT8 and back" in said
    assert "its convolutions take 8.0 ms, 2.0 of them in float, float32's 7.0" in said
    int8.operators = {"QLinearConv": 2.0, "Reorder": 7.0, "Relu": 1.0}
    said = "\n".join(verdict([base, int8], decision, base))
    assert "its best float32 form (Reorder takes 7.0 ms, in float32 0.0)" in said, "convolutions are no reason here"
    base.operators = {"Conv": 20.0}
    assert "its best float32 form\n" in "\n".join([*verdict([base, int8], decision, base), ""]), "nor is anything else"


def profiled(name: str, precision: str, ms: float) -> Record:
    made = record(name, Toy(ms, precision))
    made.screening, made.turns = [ms], {n: [ms] for n in range(1, 5)}
    made.score = {"miou": 0.5, "per_class": {}, "agreement": 1.0, "frames": 2}
    return made


def test_profile_leaves_the_first_runs_out() -> None:
    def event(name: str, dur: float, kind: str = "Conv") -> Dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": kind}}

    events = [event("a", 1e6), event("a", 1e6), *[event("a", 800.0)] * 8, {"cat": "Session", "name": "x", "dur": 9e9}]
    events += [event("q", 1.0, "QuantizeLinear")] * 2 + [event("q", 200.0, "QuantizeLinear")] * 8
    found = times_of(events)
    assert found == pytest.approx({"Conv": 0.8, "QuantizeLinear": 0.2})
    assert rounding_share(found) == pytest.approx(0.2) and rounding_share({}) == 0.0


def test_a_hopeless_float_is_no_hindrance_however_noisy_the_machine() -> None:
    clocks = {1: 1.0, 2: 9.0, 3: 2.0}
    field = {"float": {n: [20 * c] * 3 for n, c in clocks.items()}, "int8": {1: [10.0], 2: [10.0], 3: [10.0]}}
    found = ratio(field["int8"], field["float"])
    assert found is not None and not found.surely_faster
    decision = decided(field, ["float"])
    assert decision is not None and decision.winner == "int8"
