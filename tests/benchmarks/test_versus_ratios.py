"""The arithmetic of versus.py's ratios."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradseg.benchmarks.side_by_side.jobs import EAGER, TUNED, TUTORIAL
from gradseg.benchmarks.side_by_side.ratios import FOLLOWS, Row, chosen, figure, follows, ratios, read_ceilings
from gradseg.benchmarks.side_by_side.run import STAGES, summary

GMAC = {"erfnet": 26.0, "d-star-light": 5.0, "dg2-star-light": 4.0, "dg4-star-light": 2.5}
MS = st.floats(0.1, 1e4)


def row(name: str, model: str, p50: float, kind: str = "onnxruntime fp32", miou: float | None = None) -> Row:
    engine, precision = kind.split()
    return Row(name, model, p50, p50 / 2, miou, engine, precision, name.startswith("gradseg"))


@given(MS, MS, MS, MS)
def test_three_ratios_decide_on_the_subject(mine: float, tutorial: float, other: float, big: float) -> None:
    rows = [
        row(TUNED, "dg2-star-light", mine, "native int8"),
        row(TUTORIAL, "dg2-star-light", tutorial),
        row("ncnn", "dg2-star-light", other, "ncnn fp32"),
        row(TUTORIAL, "erfnet", big),
    ]
    found = ratios(rows, GMAC, {"int8": 400.0})
    wanted = {
        f"{TUTORIAL} / gradseg": (tutorial / mine, 5.0),
        "best peer / gradseg": (min(tutorial, other) / mine, 2.0),
        f"erfnet {TUTORIAL} / gradseg": (big / mine, 15.0),
    }
    for name, (value, needed) in wanted.items():
        figures = found[f"dg2-star-light: {name}"]
        assert figures["value"] == pytest.approx(value) and figures["needed"] == needed
        assert figures["met"] is (value >= needed)
        assert figures["gradseg_floor_ms"] == pytest.approx(10.0)  # 4 GMAC at 400 GMAC/s
        assert figures["value"] * mine == pytest.approx(figures["at_floor"] * 10.0)
    json.dumps(found, allow_nan=False)


@given(st.floats(1e-3, 1e3), st.sampled_from(sorted(GMAC)), st.floats(0.1, 10))
def test_speed_up_follows_operations_is_one_where_time_is_proportional(scale: float, odd: str, factor: float) -> None:
    rows = [row("gradseg native int8", model, scale * gmac, "native int8") for model, gmac in GMAC.items()]
    found = follows(rows, GMAC)["gradseg native int8"]
    assert set(found) == set(GMAC) - {"erfnet"}
    assert all(each["value"] == pytest.approx(1) == each["network_only"] and each["met"] for each in found.values())
    rows = [Row(**{**vars(r), "p50_ms": r.p50_ms * (factor if r.model == odd else 1)}) for r in rows]
    for model, each in follows(rows, GMAC)["gradseg native int8"].items():
        expected = factor if odd == "erfnet" else 1 / factor if model == odd else 1.0
        assert each["value"] == pytest.approx(expected)


def test_speed_up_is_compared_within_one_class_and_the_fastest_stands_for_it() -> None:
    rows = [
        row("gradseg native int8", "erfnet", 100, "native int8"),
        row("gradseg onnxruntime fp32", "dg2-star-light", 20),
        row("gradseg native int8", "dg2-star-light", 30, "native int8"),
        row(TUNED, "dg2-star-light", 20, "native int8"),
        row(TUTORIAL, "erfnet", 300),
        row(TUTORIAL, "dg2-star-light", 60),
    ]
    found = follows(rows, GMAC)
    assert set(found) == {"gradseg native int8", "peer onnxruntime fp32"}  # no float of ours has run erfnet
    assert found["gradseg native int8"]["dg2-star-light"]["speed_up"] == pytest.approx(5)
    assert found["peer onnxruntime fp32"]["dg2-star-light"]["needed"] is None
    name = "dg2-star-light: speed-up / operations, chosen"
    assert ratios(rows, GMAC)[name] == found["gradseg native int8"]["dg2-star-light"]
    unknown = ratios([row for row in rows if row.model != "erfnet"], GMAC)[name]
    assert unknown["value"] is None and unknown["met"] is False


def test_chosen_is_the_tuned_engine_else_the_fastest_that_keeps_its_accuracy() -> None:
    lossy = row("gradseg native int8", "erfnet", 10, "native int8", 0.60)
    exact = row("gradseg onnxruntime fp32", "erfnet", 20, miou=0.65)
    base = row(EAGER, "erfnet", 90, "torch fp32", 0.65)
    assert chosen([lossy, exact, base], "erfnet") is exact
    assert chosen([lossy, exact], "erfnet") is lossy  # nothing to hold it against
    tuned = row(TUNED, "erfnet", 30, "openvino bf16", 0.65)
    assert chosen([lossy, exact, base, tuned], "erfnet") is tuned
    assert chosen([base], "erfnet") is None and ratios([base], GMAC) == {FOLLOWS: {}}


def test_int8_as_chosen_is_held_against_the_best_float() -> None:
    def found(*rows: Row) -> dict[str, object]:
        value = ratios(rows, GMAC)["erfnet: best float / chosen"]
        assert isinstance(value, dict)
        return value

    fast, slow = row("gradseg openvino bf16", "erfnet", 20, "openvino bf16"), row("gradseg x", "erfnet", 40)
    assert found(row(TUNED, "erfnet", 25, "native int8"), fast, slow)["met"] is False
    assert found(row(TUNED, "erfnet", 10, "native int8"), fast, slow)["value"] == 2
    assert found(row(TUNED, "erfnet", 21, "openvino bf16"), fast)["met"] is None  # float was chosen
    assert found(row(TUNED, "erfnet", 10, "native int8"))["value"] is None


def test_accuracy_of_what_was_chosen() -> None:
    rows = [row(EAGER, "erfnet", 90, "torch fp32", 0.65), row(TUNED, "erfnet", 9, "native int8", 0.644)]
    found = ratios(rows, GMAC)["erfnet: mIoU of chosen, points above pytorch eager"]
    assert found["value"] == pytest.approx(-0.6) and found["met"] is False


@pytest.mark.parametrize(("value", "met"), [(5.0, True), (4.99, False), (None, False), (math.inf, False)])
def test_figure(value: float | None, met: bool) -> None:
    found = figure(value, 5.0)
    assert found["met"] is met and figure(value, None)["met"] is None
    json.dumps(found, allow_nan=False)


@given(st.lists(st.tuples(*[st.integers(0, 10**10)] * 3), min_size=1, max_size=40))
def test_stages_sum_to_the_median(times: list[tuple[int, int, int]]) -> None:
    found = summary(times)
    assert list(found["stages_ms"]) == list(STAGES)
    assert min(found["stages_ms"].values()) >= 0 and found["p50_ms"] <= found["p99_ms"] + 1e-9
    total = sum(found["stages_ms"].values())
    assert total == pytest.approx(found["p50_ms"])


def test_ceilings(tmp_path: Path) -> None:
    path = tmp_path / "roofline.json"
    for text in ("", "{", "[]", "3", '{"threads": 2, "macs_per_s": 3}', '{"threads": 2, "macs_per_s": {"fp32": [1]}}'):
        path.write_text(text)
        assert read_ceilings(path, 2) == {}
    assert read_ceilings(tmp_path / "absent.json", 2) == {}
    one, two = ({"threads": n, "macs_per_s": {"fp32": {"best": n * 6e10}, "bf16": None}} for n in (1, 2))
    path.write_text(json.dumps({"ceilings": [one, two], "layers": []}))
    assert read_ceilings(path, 2) == {"fp32": 120.0} and read_ceilings(path, 3) == {}
