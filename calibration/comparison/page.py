"""An INT8 comparison as one HTML page: no script, no network, every text from outside escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradseg.base.markup import Markup, bullets, document, escaped, percent, points, tag
from gradseg.calibration.comparison.figures import Picture
from gradseg.calibration.comparison.tables import (
    by_name,
    classes_table,
    overview,
    repairs_table,
    sparsity_text,
    variants_table,
)
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
    names = [str(section.row["model"]) for section in sections]
    links = Markup(" · ".join(f'<a href="#m{i}">{escaped(name)}</a>' for i, name in enumerate(names)))
    evaluated = f"{conditions.get('frames')} labelled frames of {conditions.get('data')}"
    parts = [
        tag("h1", "What INT8 costs"),
        tag("p", f"Measured on {evaluated}, INT8 calibrated on {conditions.get('calib')}."),
        tag("p", Markup(f"Models: {links} · <a href='#conditions'>conditions</a>")),
        tag(
            "p",
            f"cpu variants ran in ONNX Runtime on this machine, kernels and all. trt and tidl variants are {EMULATED}; "
            "their speed is that of their device, and their size that of the ONNX file. The best were chosen on "
            "the same frames, so differences of a tenth of a point between methods mean little.",
            "note",
        ),
        overview([section.row for section in sections]),
        *(model_part(section, f"m{index}") for index, section in enumerate(sections)),
        '<section id="conditions">',
        tag("h2", "Conditions"),
        tag("pre", json.dumps(conditions, indent=2, ensure_ascii=False)),
        "</section>",
    ]
    return document(f"INT8: {', '.join(names)}", parts)


def figure(picture: Picture) -> str:
    image = f'<img src="{escaped(picture.uri)}" alt="{escaped(picture.alt)}">'
    return f"<figure>{image}<figcaption>{escaped(picture.caption)}</figcaption></figure>"


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


def model_part(section: Section, anchor: str) -> str:
    """One model's part of the page."""
    row = section.row
    about = f"{row['file']} (sha256 {row['sha256'][:16]}…), input {row['input_hw'][0]}x{row['input_hw'][1]}"
    if row.get("sparsity"):
        about += f", {sparsity_text(row['sparsity'])}"
    failed = [f"{each['name']} failed: {each['error']}" for each in row["variants"] if "error" in each]
    calibration = row["calibration"]
    known = f"{calibration['frames']} frames of {calibration['source']}."
    parts = [
        f'<section id="{anchor}">',
        tag("h2", str(row["model"])),
        tag("p", about, "note"),
        bullets(verdicts(row)),
        *(tag("p", line, "bad") for line in failed),
        figure(section.drops),
        variants_table(row),
        tag("h3", "Per class"),
        classes_table(row),
        tag("h3", "What each repair does"),
        repairs_table(row),
        tag("h3", "Worst tensors"),
        *(figure(picture) for picture in section.histograms),
        tag("h3", "Frames"),
        tag("p", "Labels over the frame; in the pictures in grey, the pixels whose label changed are magenta."),
        legend(section.legend),
        *('<div class="frames">' + "".join(figure(p) for p in line) + "</div>" for line in section.frames),
        tag("h3", "Calibration"),
        tag("p", known + ("" if calibration["warnings"] else " Nothing is wrong with them.")),
        bullets(calibration["warnings"]) if calibration["warnings"] else "",
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def legend(classes: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    items = "".join(
        f'<li><span style="background:rgb({r},{g},{b})"></span>{escaped(name)}</li>' for name, (r, g, b) in classes
    )
    return f'<ul class="legend">{items}</ul>'
