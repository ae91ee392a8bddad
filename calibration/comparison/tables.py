"""The tables of the INT8 page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from gradseg.base.markup import ABSENT, Cell, percent, points, table
from gradseg.calibration.qdq.targets import TARGETS


def by_name(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(each["name"]): each for each in row["variants"]}


def overview(models: Sequence[Mapping[str, Any]]) -> str:
    """Every model's best variants beside the naive ones, with the points lost."""
    targets = [*TARGETS, "tidl_ptq"]
    titles = {"tidl": "tidl best", "tidl_ptq": "tidl, calibrated only", "cpu": "cpu best", "trt": "trt best"}
    head = ["Model", "float", *(titles[t] for t in targets), *(f"{t} naive" for t in TARGETS)]
    rows = []
    for row in models:
        known = by_name(row)
        best = [known.get(str(row["best"][target])) for target in targets]
        naive = [next((v for v in known.values() if v["naive"] and v["target"] == t), None) for t in TARGETS]
        cells = [str(row["model"]), percent(row["float"]["miou"])]
        rows.append(("", cells + [_with_drop(each) for each in [*best, *naive]]))
    return table("mIoU in %, in brackets the change against float in points", head, rows)


def _with_drop(variant: Optional[Mapping[str, Any]]) -> str:
    if variant is None or variant["miou"] is None:
        return ABSENT
    return f"{percent(variant['miou'])} ({points(-variant['drop_points'])})"


def variants_table(row: Mapping[str, Any]) -> str:
    """Float and every variant of a model."""
    head = ["Variant", "mIoU %", "Drop, points", "Worst class", "Same labels %", "Size, kB", "Latency p50, ms"]
    head += ["INT8 convolutions", "Clipped %", "Note"]
    base = row["float"]
    first = ["float", percent(base["miou"]), ABSENT, ABSENT, ABSENT, _kilobytes(base), _latency(base)]
    rows: list[tuple[str, Sequence[Cell]]] = [("float", [*first, ABSENT, ABSENT, ""])]
    best = set(row["best"].values())
    for each in row["variants"]:
        name = str(each["name"])
        if "error" in each:
            rows.append(("", [name, *[ABSENT] * (len(head) - 2), "failed, see above"]))
            continue
        worst = each["worst_class"]
        cells = [
            name,
            percent(each["miou"]),
            points(each["drop_points"]).lstrip("+"),
            f"{worst['name']} {points(worst['change_points'])}",
            percent(each["agreement"]),
            _kilobytes(each),
            _latency(each),
            f"{each['int8_convolutions']} of {each['convolutions']}",
            f"{100 * each['clipped']['mean']:.3f}" if "clipped" in each else ABSENT,
            _note(row, each),
        ]
        rows.append(("best" if name in best else "", cells))
    samples = base.get("latency_samples")
    timed = f"; latency: median of {samples} frames, in turns, preprocessing and labels included" if samples else ""
    if not row.get("latency_reliable", True):
        timed += " (the machine was busy meanwhile: measure again)"
    return table(f"Every variant; green: the best of its target{timed}", head, rows)


def _note(row: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
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


def _kilobytes(row: Mapping[str, Any]) -> str:
    return f"{row['size_bytes'] / 1e3:.0f}"


def _latency(row: Mapping[str, Any]) -> str:
    return f"{row['latency_ms']:.1f}" if "latency_ms" in row else ABSENT


def classes_table(row: Mapping[str, Any]) -> str:
    """IoU per class of float, and of the best and the naive variant of each target."""
    known = by_name(row)
    names = [str(row["best"][key]) for key in (*TARGETS, "tidl_ptq")]
    names += [name for name, each in known.items() if each["naive"]]
    shown = [known[name] for name in dict.fromkeys(names) if name in known and known[name]["miou"] is not None]
    rows = []
    for name, value in row["float"]["per_class"].items():
        cells = [name, percent(value)]
        for each in shown:
            found = each["per_class"][name]
            change = "" if value is None or found is None else f" ({points(100 * (found - value))})"
            cells.append(f"{percent(found)}{change}")
        rows.append(("", cells))
    head = ["Class", "float", *(str(each["name"]) for each in shown)]
    return table(f"IoU in %, in brackets the change in points; {ABSENT}: the class does not occur", head, rows)


def repairs_table(row: Mapping[str, Any]) -> str:
    """The drop of `mse` without repair, with each repair and with both, by target."""
    head = ["Target", "no repair", "equalisation only", "bias correction only", "both"]
    rows = []
    for target in TARGETS:
        cells = [target]
        for wanted in ((False, False), (True, False), (False, True), (True, True)):
            found = [
                each
                for each in row["variants"]
                if (each["target"], each["method"], each["naive"]) == (target, "mse", False)
                and (each["repair"]["equalise"], each["repair"]["bias_correction"]) == wanted
            ]
            cells.append(points(found[0]["drop_points"]).lstrip("+") if found and "error" not in found[0] else ABSENT)
        rows.append(("", cells))
    return table("Points of mIoU lost against float with ranges by mse", head, rows)
