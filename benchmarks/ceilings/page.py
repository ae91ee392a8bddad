"""The roofline as text and as a picture. matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from gradseg.base.files import atomic_path
from gradseg.benchmarks.ceilings.ceilings import LEVELS, ceilings_of
from gradseg.benchmarks.ceilings.nodes import plain
from gradseg.calibration.cost.plots import new_figure

COLOURS = {"fp32": "#2f5d9b", "bf16": "#3a8f5c", "int16": "#8a4fa3", "int8": "#c0612b"}
GREYS = {"L2": "0.75", "L3": "0.55", "DRAM": "0.3"}
SHOWN = 12  # operators in the bars


def ceilings_text(measured: Mapping[str, Any]) -> str:
    """What the ceilings are and where they come from."""
    lines = [f"ceilings, {measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"]
    for kind, found in measured["macs_per_s"].items():
        if found:
            how = "on registers alone" if found["source"] == "native" else "of a large product or convolution"
            lines.append(f"  {kind:<5}{found['best'] / 1e9:>9.1f} GMAC/s  {how}, by {found['source']}")
        else:
            lines.append(f"  {kind:<5}        - not measured: no source here computes in it")
    for level in LEVELS:
        found = measured["bytes_per_s"][level]
        lines.append(
            f"  {level:<5}{found['best'] / 1e9:>9.1f} GB/s    copy {found['copy'] / 1e9:.1f}, read "
            f"{found['read'] / 1e9:.1f}, {found['bytes_per_thread'] / 2**20:.1f} MiB per thread"
        )
    return "\n".join(lines)


def engine_text(engine: Mapping[str, Any], top: int) -> str:
    """Where the time of an engine goes: by operator, then the layers that lose most to their floors."""
    total = engine["totals"]
    lines = [
        f"{engine['file']} in {engine['engine']}: {total['frame_ms']:.2f} ms a frame, {total['gmac_per_s']:.1f} "
        f"GMAC/s; floor {total['floor_ms']:.2f} ms, {100 * total['share']:.0f} % of what the ceilings allow",
        f"  {total['layers']} layers take {total['layers_ms']:.2f} ms profiled; {total['macs'] / 1e9:.3f} GMAC, "
        f"{total['bytes_moved'] / 1e6:.0f} MB moved",
        f"  {'operator':<20}{'kind':>5}{'layers':>8}{'ms':>9}{'floor ms':>10}{'share':>8}",
    ]
    for group in engine["groups"]:
        share = f"{100 * group['floor_ms'] / group['ms']:.0f} %" if group["ms"] else "-"
        lines.append(
            f"  {group['op']:<20}{group['kind']:>5}{group['layers']:>8}{group['ms']:>9.2f}{group['floor_ms']:>10.2f}"
            f"{share:>8}"
        )
    lines.append(f"  {'lost ms':>8}{'ms':>8}{'GMAC/s':>8}{'share':>8}  {'bound':<11}layer")
    for row in sorted(engine["layers"], key=lambda row: -float(row["lost_ms"]))[:top]:
        rate = f"{row['gmac_per_s']:.1f}" if row["macs"] and row["gmac_per_s"] else "-"
        share = f"{100 * row['share']:.0f} %" if row["share"] else "-"
        note = "" if row["nodes"] else " (the engine's own: no node of the network)"
        lines.append(
            f"  {row['lost_ms']:>8.2f}{row['ms']:>8.2f}{rate:>8}{share:>8}  {row['bound']:<11}{label(row)}{note}"
        )
    if engine["above"]:
        lines.append(
            f"  warning: {len(engine['above'])} layers, {engine['above'][0]} the first, are faster than the ceiling of "
            "their arithmetic: something else ran while it was measured; measure again on a quiet machine"
        )
    if engine["unmapped"]:
        lines.append(f"  not found in the profile, so not counted: {', '.join(engine['unmapped'])}")
    return "\n".join(lines)


def label(row: Mapping[str, Any]) -> str:
    """Operator, and the first node of the network that the layer stands for, else the engine's own name."""
    name = plain(row["nodes"][0]) if row["nodes"] else plain(row["name"])
    return f"{row['op']} {name}" if len(name) < 70 else f"{row['op']} …{name[-66:]}"


def draw(engines: Sequence[Mapping[str, Any]], measured: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: per engine its layers under the roofs (area: time), and its time by operator with the floors."""
    figure = new_figure(13, 1 + 4.2 * len(engines))
    axes = figure.subplots(len(engines), 2, squeeze=False)
    for engine, (roof, bars) in zip(engines, axes, strict=True):
        _roof(roof, engine, measured)
        _bars(bars, engine)
    figure.suptitle(f"Layers under this machine's ceilings, {measured['threads']} threads", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(str(temporary), format="png", metadata={"Software": None})


def _roof(axis: Any, engine: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    rows = [row for row in engine["layers"] if row["macs"] and row["ms"] and row["macs_per_byte"]]
    used = {row["kind"] for row in rows} or {"fp32"}
    ceilings = ceilings_of(measured)
    known = {kind: ceilings.peak(kind) / 1e9 for kind in used}
    intensities = [row["macs_per_byte"] for row in rows] or [1.0]
    top = max(known[kind] for kind in used)
    slopes = [measured["bytes_per_s"][level]["best"] / 1e9 for level in LEVELS]
    low, high = min(*intensities, top / max(slopes)) / 3, max(*intensities, top / min(slopes)) * 3
    for level, slope in zip(LEVELS, slopes, strict=True):
        axis.plot([low, top / slope], [low * slope, top], color=GREYS[level], linewidth=1, label=level)
    for kind in sorted(used):
        axis.axhline(known[kind], color=COLOURS[kind], linewidth=1, linestyle="--", label=f"{kind} arithmetic")
        mine = [row for row in rows if row["kind"] == kind]
        area = [max(6.0, 900 * row["ms"] / engine["totals"]["layers_ms"]) for row in mine]
        places = [row["macs_per_byte"] for row in mine], [row["gmac_per_s"] for row in mine]
        axis.scatter(*places, s=area, color=COLOURS[kind], alpha=0.5, linewidths=0)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(low, high)
    axis.set_xlabel("multiply-accumulates per byte moved")
    axis.set_ylabel("GMAC/s")
    name, frame_ms = Path(engine["file"]).name, engine["totals"]["frame_ms"]
    axis.set_title(f"{name} in {engine['engine']}: {frame_ms:.1f} ms", fontsize=9)
    axis.legend(fontsize=7, loc="lower right")
    axis.grid(alpha=0.2)


def _bars(axis: Any, engine: Mapping[str, Any]) -> None:
    groups: List[Dict[str, Any]] = list(engine["groups"])[:SHOWN]
    places = range(len(groups))
    axis.barh(places, [group["ms"] for group in groups], color=[COLOURS[group["kind"]] for group in groups], alpha=0.45)
    axis.barh(places, [group["floor_ms"] for group in groups], color=[COLOURS[group["kind"]] for group in groups])
    axis.set_yticks(places, [f"{group['op']} {group['kind']} ({group['layers']})" for group in groups], fontsize=7)
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.set_xlabel("ms of a frame; dark: the floor")
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
