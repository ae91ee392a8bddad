"""Plots and pictures of an INT8 comparison as data URIs, for a page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import cv2
import numpy as np

from gradseg.calibration.comparison.recipes import TensorError, best_of
from gradseg.calibration.comparison.variants import Measured, runner_of
from gradseg.calibration.cost.accuracy import Frames
from gradseg.calibration.cost.plots import new_figure
from gradseg.calibration.ranges.observers import Observer
from gradseg.data.base import evenly
from gradseg.runtime.sinks.overlay import Overlay

WIDEST = 480  # pixels of a picture on the page
CHANGED = (200, 0, 230)  # BGR of pixels whose label changed
WORST = 6  # tensors shown
BARS = 96  # of a histogram
KINDS = {  # colours that differ for colour-blind eyes too
    "naive": "#b5492f",
    "calibrated, full repair": "#2f5d9b",
    "calibrated, repair in part or none": "#9db8dc",
    "fine-tuned for INT8 (QAT)": "#2e7d4f",
}


@dataclass(frozen=True)
class Picture:
    """An image on the page. uri: "data:image/…;base64,…". alt: what it shows, for those who do not see it."""

    caption: str
    alt: str
    uri: str


def kind_of(row: Mapping[str, Any]) -> str:
    """The key of `KINDS` for a variant's row."""
    naive, calibrated, part, tuned = KINDS
    if row["qat"]:
        return tuned
    return naive if row["naive"] else calibrated if all(row["repair"].values()) else part


def uri_of_figure(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def uri_of_image(image: np.ndarray[Any, Any]) -> str:
    """uint8 BGR (H, W, 3), made at most `WIDEST` pixels wide → JPEG."""
    height, width = image.shape[:2]
    if width > WIDEST:
        size = (WIDEST, max(1, round(height * WIDEST / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return f"data:image/jpeg;base64,{base64.b64encode(packed.tobytes()).decode('ascii')}"


def drops_picture(row: Mapping[str, Any]) -> Picture:
    """A bar per variant of a model's row: points of mIoU lost. Linear up to 1 point, logarithmic beyond."""
    shown = [each for each in row["variants"] if each["miou"] is not None]
    figure = new_figure(9.5, 1.3 + 0.25 * len(shown))
    axis = figure.add_subplot()
    drops = [float(each["drop_points"]) for each in shown]
    kinds = [kind_of(each) for each in shown]
    axis.barh(range(len(shown)), drops, color=[KINDS[kind] for kind in kinds], height=0.72)
    axis.set_xscale("symlog", linthresh=1.0)
    most, least = max([*drops, 1.0]), min([*drops, -0.05])
    axis.set_xlim(least * 1.9 if least < -0.1 else -0.25, most * 2.2)
    ticks = [tick for tick in (-5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0) if tick > least * 1.5]
    ticks += [tick for tick in (2.0, 5.0, 10.0, 20.0, 50.0, 100.0) if tick < most * 1.5]
    axis.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    axis.minorticks_off()
    for index, drop in enumerate(drops):
        text = f" {-drop:.2f} gained " if drop <= -0.005 else f" {abs(drop):.2f} "
        axis.text(drop, index, text, va="center", ha="left" if drop >= 0 else "right", fontsize=8)
    axis.axvline(0.5, color="0.35", linestyle="--", linewidth=1)
    axis.axvline(0.0, color="0.2", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [plain(each["name"]) for each in shown], fontsize=8)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlabel("points of mIoU lost against float (dashed: 0.5; linear up to 1, logarithmic beyond)", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    used = [(name, colour) for name, colour in KINDS.items() if name in kinds]
    handles = [axis.barh([0], [0], color=colour) for _, colour in used]
    figure.legend(handles, [name for name, _ in used], loc="outside upper left", ncols=4, fontsize=8, frameon=False)
    words = ", ".join(f"{each['name']} {drop:.2f}" for each, drop in zip(shown, drops, strict=True))
    return Picture(
        "Points of mIoU that each variant loses", f"Bars, points of mIoU lost: {words}", uri_of_figure(figure)
    )


def worst_tensors(found: Measured, target: str) -> list[Picture]:
    """The histograms of the target's best variant without fine-tuning; none if all failed."""
    rows = [row for row in found.row["variants"] if row["target"] == target and row["name"] in found.tensors]
    best = best_of(rows)[target]
    if best is None:
        return []
    equalise = next(bool(row["repair"]["equalise"]) for row in rows if row["name"] == best)
    return [histograms_picture(best, found.tensors[best], found.calibrations[equalise].statistics.observers)]


def histograms_picture(name: str, tensors: Sequence[TensorError], observers: Mapping[str, Observer]) -> Picture:
    """Histograms of a variant's worst tensors on the calibration frames; what lies outside its limits is marked."""
    chosen = list(tensors[:WORST])
    rows = max(1, (len(chosen) + 2) // 3)
    figure = new_figure(9.5, 2.35 * rows + 0.3)
    for index, each in enumerate(chosen):
        _histogram(figure.add_subplot(rows, 3, index + 1), each, observers[each.name])
    words = "; ".join(
        f"{each.name}: integers reach from {each.low:.4g} to {each.high:.4g}, {share_text(each.clipped)} clipped, "
        f"{noise_text(each)}"
        for each in chosen
    )
    caption = (
        f"{name}: the {len(chosen)} tensors with the least signal to noise on the calibration frames (log counts). "
        "Dashed: the limits of the integers; red: what is clipped."
    )
    return Picture(caption, f"Histograms of {words}", uri_of_figure(figure))


def share_text(share: float) -> str:
    return "0 %" if share == 0 else "below 0.001 %" if share < 1e-5 else f"{100 * share:.3g} %"


def noise_text(tensor: TensorError) -> str:
    return "always zero" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f} dB"


def _histogram(axis: Any, tensor: TensorError, seen: Observer) -> None:
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    edges = np.linspace(low, high if high > low else low + 1.0, BARS + 1)
    counts, _ = np.histogram(np.clip(seen.centres(), edges[0], edges[-1]), edges, weights=np.maximum(seen.weights(), 0))
    middle = (edges[1:] + edges[:-1]) / 2
    outside = (middle < tensor.low) | (middle > tensor.high)
    for values, colour in ((np.where(outside, 0, counts), "#2f5d9b"), (np.where(outside, counts, 0), "#c2260e")):
        axis.stairs(values, edges, baseline=0.5, fill=True, color=colour)
    span = edges[-1] - edges[0]
    for limit in (tensor.low, tensor.high):
        if edges[0] - 0.05 * span <= limit <= edges[-1] + 0.05 * span:
            axis.axvline(limit, color="0.15", linestyle="--", linewidth=1)
    axis.set_yscale("log")
    axis.set_ylim(0.5, 3 * max(1.0, float(counts.max())))
    axis.minorticks_off()
    axis.set_xlim(edges[0] - 0.05 * span, edges[-1] + 0.05 * span)
    axis.set_title(
        f"{plain(in_two(tensor.name))}\n{share_text(tensor.clipped)} clipped, {noise_text(tensor)}", fontsize=7.5
    )
    axis.tick_params(labelsize=7)


def in_two(name: str, width: int = 40) -> str:
    """A long tensor name on two lines, parted at a slash; of one that is longer still the end."""
    cut = name.rfind("/", 1, width + 1)
    if len(name) <= width or cut < 0:
        return name if len(name) <= width else f"…{name[1 - width :]}"
    return f"{name[:cut]}\n{in_two(name[cut:], width) if len(name) - cut <= width else '…' + name[1 - width :]}"


def plain(text: str) -> str:
    """Text as matplotlib draws it letter by letter: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def frame_pictures(
    found: Measured, frames: Frames, variants: Sequence[str], count: int, threads: Optional[int]
) -> list[list[Picture]]:
    """For each of `count` frames: the frame, float's labels, and for each variant its labels and what changed."""
    spec, kept = frames.spec, list(frames)
    targets = {row["name"]: str(row["target"]) for row in found.row["variants"]}
    runners = {name: runner_of(found.files[name], targets.get(name, "cpu"), threads) for name in ("float", *variants)}
    blend = Overlay(spec.palette, "overlay", 0.65)
    rows = []
    for index in evenly(range(len(frames)), count):
        batch = kept[index][0]
        frame = batch[0]
        labels = {name: runner.first(batch)[0] for name, runner in runners.items()}
        said = f"frame {index + 1} of {len(kept)}"
        row = [
            Picture(said, said, uri_of_image(frame)),
            Picture("float", f"{said}: float's labels", uri_of_image(blend(frame, labels["float"]))),
        ]
        for name in variants:
            differs = labels[name] != labels["float"]
            share = f"{100 * float(differs.mean()):.2f} % of the labels changed"
            row.append(Picture(name, f"{said}: labels of {name}", uri_of_image(blend(frame, labels[name]))))
            row.append(Picture(f"{name}: {share}", f"{said}: {share}", uri_of_image(marked(frame, differs))))
        rows.append(row)
    return rows


def marked(frame: np.ndarray[Any, Any], differs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint8 BGR (H, W, 3) and bool (H, W) → the frame in pale grey with the chosen pixels in `CHANGED`."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    pale = cv2.cvtColor((110 + grey.astype(np.uint16) * 140 // 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    pale[differs] = CHANGED
    return pale
