"""How tune.py spends its turns: elimination, budgets, mishaps, resumption; no engine runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tune_toys import FakeBench, Toy, measured, measuring, record

from gradseg.base.errors import GradsegError
from gradseg.export.tuning.candidates import placed
from gradseg.export.tuning.machine import Placement
from gradseg.export.tuning.measure import LEAST, ROUNDS, Deadline, Measuring
from gradseg.export.tuning.state import Record
from gradseg.export.tuning.words import decision_of


def winner(work: Measuring) -> str:
    found = decision_of(list(work.records.values()))
    assert found is not None
    return found.winner


def test_the_hopeless_get_few_turns_and_finalists_many() -> None:
    toys = {"base": Toy(10), "level": Toy(10.05, noise=0.05), "slower": Toy(14), "torch": Toy(90)}
    work, bench = measured(toys)
    assert winner(work) in ("base", "level")
    assert len(work.records["base"].turns) >= ROUNDS
    assert len(work.records["slower"].turns) <= 4 and not work.records["torch"].turns
    assert bench.turns("torch") == 1, "it was looked at once"
    assert [name for what, name in bench.calls if what == "score"] == ["base", "level", "slower", "torch"]


def test_order_alternates_so_that_nobody_is_always_behind_the_same() -> None:
    _, bench = measured({"base": Toy(10, noise=0.1), "b": Toy(10, noise=0.1)})
    turns = [name for what, name in bench.calls if what == "turn"][2:]
    assert turns[:4] in (["base", "b", "b", "base"], ["b", "base", "base", "b"])


def test_the_leaders_labels_are_checked_early_and_those_behind_it_come_back() -> None:
    toys = {"base": Toy(30), "bad": Toy(5, "int8", 0.5), "good": Toy(12, "int8", 0.599)}
    work, bench = measured(toys)
    assert work.records["bad"].state == "refused" and "loses 10.00 points" in work.records["bad"].reason
    assert len(work.records["bad"].turns) == LEAST
    assert winner(work) == "good" and len(work.records["good"].turns) >= LEAST
    assert ("closed", "bad") in bench.calls


def test_a_wider_budget_lets_it_win() -> None:
    toys = {"base": Toy(30), "bad": Toy(5, "int8", 0.5)}
    assert winner(measured(toys, drop=0.5)[0]) == "base"
    assert winner(measured(toys, drop=15.0)[0]) == "bad"


def test_a_crash_rules_out_one_candidate() -> None:
    work, _ = measured({"base": Toy(10), "dies": Toy(5, "int8", crash=2), "good": Toy(8, "int8")})
    assert (work.records["dies"].state, work.records["dies"].reason) == ("unavailable", "crashed (SIGSEGV)")
    assert winner(work) == "good"


def test_without_fp32_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(GradsegError, match=r"FP32 as exported cannot be measured here: crashed"):
        measured({"base": Toy(10, crash=0)})


def test_float_forms_with_other_labels_are_out() -> None:
    work, bench = measured({"base": Toy(10), "wrong": Toy(4, exact=False)})
    assert work.records["wrong"].state == "refused" and not work.records["wrong"].turns
    assert bench.turns("wrong") == 0 and winner(work) == "base"


def test_a_repeat_measures_nothing() -> None:
    work, bench = measured({"base": Toy(10), "q": Toy(5, "int8"), "slow": Toy(60)})
    again = FakeBench(bench.toys)
    records = [Record.from_dict(bench.kept[name]) for name in bench.toys]
    repeat = Measuring(again, records, "base", Deadline(None), lambda text: None)
    repeat.screen()
    repeat.settle()
    repeat.judge_all()
    assert not [call for call in again.calls if call[0] != "closed"]
    assert winner(repeat) == winner(work) == "q"


@settings(max_examples=25)
@given(st.integers(1, 60))
def test_an_interrupted_run_goes_on_to_the_same_winner(after: int) -> None:
    toys = {"base": Toy(10), "q": Toy(6, "int8"), "worse": Toy(4, "int8", 0.3), "slow": Toy(70)}

    class Killed(FakeBench):
        def keep(self, record: Record) -> None:
            super().keep(record)
            if len(self.calls) >= after:
                raise KeyboardInterrupt

    bench = Killed(toys)
    work = measuring(bench)
    with pytest.raises(KeyboardInterrupt):
        work.screen()
        work.settle()
        work.judge_all()
        raise KeyboardInterrupt  # it was over before
    records = [
        Record.from_dict(bench.kept[name]) if name in bench.kept else record(name, toy) for name, toy in toys.items()
    ]
    again = Measuring(FakeBench(toys, seed=1), records, "base", Deadline(None), lambda text: None)
    again.screen()
    again.settle()
    again.judge_all()
    assert winner(again) == "q"
    assert again.records["worse"].state == "refused"


def test_another_drop_is_applied_to_what_was_measured() -> None:
    _, bench = measured({"base": Toy(10), "q": Toy(5, "int8", 0.59)})
    kept = {name: Record.from_dict(raw) for name, raw in bench.kept.items()}
    assert kept["q"].state == "refused"
    kept["q"].state = ""  # as tune_run does with what mIoU ruled out
    again = FakeBench(bench.toys, drop=2.0)
    work = Measuring(again, list(kept.values()), "base", Deadline(None), lambda text: None)
    assert not work.records["q"].state
    work.settle()
    assert winner(work) == "q"


@settings(max_examples=30)
@given(st.floats(0.05, 20.0), st.floats(0.0, 3.0))
def test_a_time_budget_is_kept_about(budget: float, scoring: float) -> None:
    toys = {"base": Toy(40), "a": Toy(30), "q": Toy(20, "int8"), "p": Toy(25, "int8", 0.2)}
    work, bench = measured(toys, budget, seconds=scoring)
    assert bench.now <= budget + 2.0 + scoring, "it ends within a turn of what was asked"
    found = winner(work)
    assert found in ("base", "a", "q")
    if work.records[found].precision == "int8":
        assert work.records[found].score is not None
    assert work.deadline.ran_out == (bench.now > budget) or work.deadline.ran_out


@pytest.mark.parametrize("budget", [6.5, 12.0, 30.0])
def test_a_clear_leaders_labels_are_checked_before_others_take_the_time(budget: float) -> None:
    others = {f"f{n}": Toy(150.0 + n) for n in range(12)}
    toys = {"base": Toy(150), "q": Toy(25, "int8", engine="GradSeg native"), "p": Toy(140, "int8"), **others}
    work, bench = measured(toys, budget, seconds=0.5)
    assert winner(work) == "q" and work.records["q"].score is not None
    assert bench.calls[:4] == [("turn", "base"), ("turn", "q"), ("score", "base"), ("score", "q")]
    assert bench.now <= budget + 2.5


def test_where_the_clear_leader_loses_too_much_the_next_one_is_looked_at() -> None:
    toys = {"base": Toy(150), "bad": Toy(5, "int8", 0.2), "q": Toy(25, "int8"), "slow": Toy(160)}
    work, bench = measured(toys, 9.0, seconds=0.5)
    assert work.records["bad"].state == "refused" and not work.records["bad"].turns
    assert winner(work) == "q"
    assert [name for what, name in bench.calls if what == "score"][:3] == ["base", "bad", "q"]


def test_who_leads_by_little_is_checked_while_there_is_time() -> None:
    toys = {"base": Toy(100), "q": Toy(80, "int8"), **{f"f{n}": Toy(101 + n) for n in range(4)}}
    work, bench = measured(toys, 15.0, seconds=1.0)
    assert work.records["q"].score is not None and len(work.records["q"].turns) < LEAST and bench.now <= 17.0


@pytest.mark.parametrize("slower", [1, 5, 10])
def test_on_a_slow_machine_the_first_ones_are_measured_and_the_right_one_wins(slower: int) -> None:
    """Times of a small network on two cores, and of a machine so many times slower; preparing takes its part."""
    first = {"base": Toy(46 * slower), "native": Toy(4 * slower, "int8", engine="n"), "int8": Toy(29 * slower, "int8")}
    more = {name: Toy(ms * slower) for name, ms in (("heads", 28), ("rows", 30), ("dense", 41), ("torch", 250))}
    bench = FakeBench({**first, **more}, seconds=0.7 * slower)
    deadline = Deadline(60.0, lambda: bench.now)
    bench.now = prepared = 10.0 * slower
    deadline.mark_prepared()
    records = [record(name, toy) for name, toy in first.items()]
    work = Measuring(bench, records, "base", deadline, lambda text: None)
    work.screen(always=True)
    work.add([record(name, toy) for name, toy in more.items()])
    work.screen()
    work.settle()
    work.judge_all()
    assert all(work.records[name].screening for name in first)
    assert winner(work) == "native" and work.records["native"].score is not None
    assert bench.now <= max(60.0, prepared + 30.0) + 2.0 * slower


def test_int8_whose_labels_nobody_looked_at_does_not_win() -> None:
    work, _ = measured({"base": Toy(10), "q": Toy(2, "int8")}, 3.0, seconds=50.0)
    assert work.records["q"].score is None and winner(work) == "base" and work.deadline.ran_out


def test_slow_frames_make_short_turns() -> None:
    work, _ = measured({"base": Toy(400), "q": Toy(300, "int8")})
    assert {len(turn) for turn in work.records["q"].turns.values()} <= {3}


def test_other_placements_share_the_labels() -> None:
    bench = FakeBench({"base": Toy(10), "q": Toy(5, "int8")})
    work = measuring(bench)
    work.screen()

    assert work.front() == ["q", "base"]
    work.add([placed(work.records[name], Placement(1)) for name in work.front()])
    assert work.front() == ["q", "base"]
    work.screen()
    work.settle()
    work.judge_all()
    assert {"base@1", "q@1"} <= set(work.records)
    assert [name for what, name in bench.calls if what == "score"] == ["base", "q"], "one score for all placements"


def test_a_variant_in_front_does_not_save_the_labels_of_the_other() -> None:
    bench = FakeBench({"base": Toy(10), "q": Toy(5, "int8", 0.5)})
    work = measuring(bench)
    work.screen()
    variant = placed(work.records["q"], Placement(1))
    work.add([variant])
    work.screen()
    work.judge(variant)
    assert {name: each.state for name, each in work.records.items()} == {
        "base": "",
        "q": "refused",
        "q@1": "refused",
    }
    work.settle()
    assert winner(work) == "base"


def test_within_an_engine_int8_and_float_take_turns_though_another_engine_is_far_ahead() -> None:
    toys = {"base": Toy(50), "q": Toy(60, "int8"), "own": Toy(5, "int8", engine="GradSeg native")}
    work, _ = measured(toys)
    common = set(work.records["base"].turns) & set(work.records["q"].turns)
    assert len(common) >= LEAST and winner(work) == "own"


def test_where_time_is_short_the_fast_ones_get_it() -> None:
    toys = {"base": Toy(100), "q": Toy(40, "int8"), **{f"f{n}": Toy(150 + n) for n in range(8)}}
    work, bench = measured(toys, 32.0, seconds=2.0)
    assert winner(work) == "q" and bench.now <= 34.0 and work.deadline.ran_out
    assert work.records["q"].score is not None and not work.records["f7"].turns
