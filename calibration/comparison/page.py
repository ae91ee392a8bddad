"""An INT8 comparison as one HTML page: no script, no network, every text from outside escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradseg.base.pages import percent, points, rendered
from gradseg.calibration.comparison.figures import Picture
from gradseg.calibration.comparison.variants import EMULATED
from gradseg.calibration.qdq.targets import TARGETS

BUDGET = 0.5  # points of mIoU that INT8 may cost


@dataclass
class Section:
    """One model on the page. row: its entry in the JSON. frames: rows of pictures, as `frame_pictures` gives them."""

    row: Mapping[str, Any]
    drops: Picture
    histograms: Sequence[Picture] = ()
    frames: Sequence[Sequence[Picture]] = ()
    legend: Sequence[tuple[str, tuple[int, int, int]]] = field(default_factory=tuple)


def page(sections: Sequence[Section], conditions: Mapping[str, Any]) -> str:
    """The whole document. `conditions`: as in the JSON."""
    said = (by_name, compared, note, sparsity_text, verdicts)
    known = {"sections": sections, "conditions": conditions, "targets": list(TARGETS), "EMULATED": EMULATED}
    template = Path(__file__).with_name("report.html.j2")
    return rendered(template, **known, **{each.__name__: each for each in said})


def by_name(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(each["name"]): each for each in row["variants"]}


def compared(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The best and the naive variant of each target, those that have an mIoU."""
    known = by_name(row)
    names = [str(row["best"][key]) for key in (*TARGETS, "tidl_ptq")]
    names += [name for name, each in known.items() if each["naive"]]
    return [known[name] for name in dict.fromkeys(names) if name in known and known[name]["miou"] is not None]


def note(row: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    """What else is to be said of a variant, in words."""
    keys = [key for key, name in row["best"].items() if name == variant["name"]]
    said = [f"best for {key}" if key in TARGETS else "best without fine-tuning" for key in keys]
    if len(said) == 2:  # the best for tidl is one without fine-tuning
        said = said[:1]
    if variant["naive"]:
        said.append("per-tensor min-max, no repair")
    if variant["qat"]:
        said.append(f"its own weights in float: {percent(variant['own_float_miou'])} %")
    if variant.get("sparsity"):
        said.append(sparsity_text(variant["sparsity"]))
    return "; ".join(said)


def sparsity_text(sparsity: Any) -> str:
    """What a checkpoint's `info` says of its pruned weights, in words."""
    if not isinstance(sparsity, Mapping) or not isinstance(sparsity.get("achieved"), (int, float)):
        return f"pruned ({sparsity})"
    return f"{100 * float(sparsity['achieved']):.1f} % of its weights are zero ({sparsity.get('asked')} asked for)"


def verdicts(row: Mapping[str, Any]) -> list[str]:
    """A model's row in words: for each target the best variant, what it costs, and whether it is worth it here."""
    known, lines = by_name(row), []
    for target in TARGETS:
        best = known.get(str(row["best"][target]))
        if best is None:
            lines.append(f"{target}: every variant failed.")
            continue
        worst = best["worst_class"]
        text = (
            f"{target}: best is “{best['name']}” with {percent(best['miou'])} % mIoU, {_lost(best['drop_points'])} "
            f"(worst class: {worst['name']}, {points(worst['change_points'])}); {percent(best['agreement'])} % of the "
            f"labels are float's."
        )
        naive = next((each for each in known.values() if each["naive"] and each["target"] == target), best)
        if naive is best:
            text += " It is the naive one: this network needs no care on these frames."
        elif "error" not in naive:
            text += f" Naive INT8: {_lost(naive['drop_points'])}."
        untuned = known.get(str(row["best"]["tidl_ptq"])) if target == "tidl" and best["qat"] else None
        if untuned is not None:
            text += f" Without fine-tuning the best is “{untuned['name']}”: {_lost(untuned['drop_points'])}."
        lines.append(f"{text} {_worth(row, best)}")
    return lines


def _lost(drop: float) -> str:
    if abs(drop) < 0.005:
        return "as good as float"
    return f"{abs(drop):.2f} points {'below' if drop > 0 else 'above'} float"


def _worth(row: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    base = row["float"]
    cheap = best["drop_points"] <= BUDGET
    cost = f"It costs {'no more' if cheap else 'more'} than {BUDGET:g} points"
    size = f"the file has {100 * best['size_bytes'] / base['size_bytes']:.0f} % of float's size"
    if best["target"] != "cpu":
        return f"{cost}; {size}; its speed has to be measured on the device."
    if "latency_ms" not in best or "latency_ms" not in base:
        return f"{cost}; {size}; latency was not measured."
    if not row.get("latency_reliable", True):
        return f"{cost}; {size}; no verdict on speed, the machine was busy while it was measured."
    ratio = best["latency_ms"] / base["latency_ms"]
    if ratio >= 1:
        return f"{cost}; {size}; it takes {ratio:.2f} of float's time, so float is the better choice on this machine."
    worth = "worth it on this machine" if cheap else "a trade of accuracy for speed on this machine"
    return f"{cost}; {size}; it takes {ratio:.2f} of float's time: {worth}."
