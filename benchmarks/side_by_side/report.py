"""What versus.py shows: a table in the terminal, a page, and latency against multiply-accumulates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradseg.base.files import atomic_path
from gradseg.base.pages import ABSENT, percent, rendered
from gradseg.benchmarks.common.job import INPUT_HW
from gradseg.benchmarks.common.tables import aligned
from gradseg.benchmarks.side_by_side.jobs import TUNED
from gradseg.benchmarks.side_by_side.ratios import FOLLOWS
from gradseg.calibration.cost.plots import new_figure

OURS = ("#2e7d4f", "#6aa84f", "#14532d", "#8fbc5a", "#3f8f86", "#0b3d2e")
PEERS = ("#2f5d9b", "#b5492f", "#8a6d1d", "#6b4c9a", "#4a5361", "#9db8dc", "#c98aa5")
MARKS = "osv^D<>"


HEAD = ("p50 ms", "p99 ms", "preprocess", "network", "postprocess", "mIoU %")


def table(result: Mapping[str, Any]) -> str:
    """Every pipeline, then every ratio that something is asked of, then what was not measured."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in result["pipelines"]):
        known = result["conditions"]["models"][model]
        lines.append(f"\n{model}, {known['gmac']:.2f} GMAC{'' if known['trained'] else ', untrained'}")
        lines += aligned([["", *HEAD], *rows_of(result, model)])
    lines += ["", *decisive(result["ratios"]), "", *classes_lines(result["ratios"]), ""]
    lost = result["conditions"]["unavailable"]
    lines += [f"not measured: {each['name']} | {each['model']}: {each['reason']}" for each in lost]
    return "\n".join(lines)


def rows_of(result: Mapping[str, Any], model: str) -> list[list[str]]:
    """Name and cells under HEAD of a model's pipelines, the fastest first."""
    rows = sorted((row for row in result["pipelines"] if row["model"] == model), key=lambda row: float(row["p50_ms"]))
    times = [(row["p50_ms"], row["p99_ms"], *row["stages_ms"].values()) for row in rows]
    return [
        [row["name"], *(f"{ms:.1f}" for ms in taken), percent(row["miou"])]
        for row, taken in zip(rows, times, strict=True)
    ]


def decisive(ratios: Mapping[str, Any]) -> list[str]:
    """A line for every ratio that something is asked of; the classes that were not chosen are left to
    `classes_lines`."""
    lines = []
    for name, value in ratios.items():
        if name != FOLLOWS and value["needed"] is not None:
            known = "unknown" if value["value"] is None else f"{value['value']:.2f}"
            word = "met   " if value["met"] else "MISSED"
            lines.append(f"{word} {known:>7} (needed {value['needed']:g})  {name}: {value['of']}")
    return lines


def classes_lines(ratios: Mapping[str, Any]) -> list[str]:
    """Speed-up over operations saved, a line per class of engine and precision, a column per model."""
    classes = ratios[FOLLOWS]
    models = list(dict.fromkeys(model for found in classes.values() for model in found))
    rows = [
        [kind, *(f"{found[model]['value']:.2f}" if model in found else ABSENT for model in models)]
        for kind, found in classes.items()
    ]
    return aligned([[FOLLOWS, *models], *rows]) if rows else []


def write_plot(result: Mapping[str, Any], ceilings: Mapping[str, float], path: Path) -> None:
    """A PNG or SVG: latency over GMAC, a line per pipeline, and the least that arithmetic allows."""
    figure = new_figure(9.5, 6, "--plot")
    draw(figure.add_subplot(), result, ceilings)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().lstrip(".") or "png")


def draw(axis: Any, result: Mapping[str, Any], ceilings: Mapping[str, float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    models = result["conditions"]["models"]
    about = result["conditions"]["pipelines"]
    counts = {True: itertools.count(), False: itertools.count()}
    for name in dict.fromkeys(row["name"] for row in result["pipelines"]):
        rows = [row for row in result["pipelines"] if row["name"] == name]
        points = sorted((float(models[row["model"]]["gmac"]), float(row["p50_ms"])) for row in rows)
        ours = bool(about[f"{name} | {rows[0]['model']}"]["ours"])
        place, colours = next(counts[ours]), OURS if ours else PEERS
        axis.plot(
            *zip(*points, strict=True),
            label=name,
            color=colours[place % len(colours)],
            marker="*" if name == TUNED else MARKS[place % len(MARKS)],
            markersize=11 if name == TUNED else 5,
            linestyle=":" if ours and name != TUNED else "-",
            linewidth=2.2 if name == TUNED else 1.2,
        )
    costs = {name: float(known["gmac"]) for name, known in models.items()}
    reach = [min(costs.values()), max(costs.values())]
    for (precision, ceiling), dashes in zip(sorted(ceilings.items()), ("--", "-.", (0, (1, 1))), strict=False):
        least = [1000 * value / ceiling for value in reach]
        axis.plot(reach, least, color="#1b1f24", linestyle=dashes, label=f"floor {precision}, {ceiling:.0f} GMAC/s")
    axis.set(xscale="log", yscale="log", xlabel="GMAC", ylabel="p50, frame to labels, ms")
    axis.grid(True, which="both", alpha=0.25)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ticks = sorted({round(gmac, 2): name for name, gmac in costs.items()}.items())
    axis.set_xticks([value for value, _ in ticks], [f"{name}\n{value:g}" for value, name in ticks], fontsize=8)
    axis.xaxis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def page(result: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    """One HTML page that needs nothing but itself."""
    from gradseg.calibration.comparison.figures import uri_of_figure

    figure = new_figure(9.5, 6, "--html")
    draw(figure.add_subplot(), result, ceilings)
    return rendered(
        Path(__file__).with_name("versus.html.j2"),
        image=uri_of_figure(figure),
        input_hw=INPUT_HW,
        head=HEAD,
        ratios=decisive(result["ratios"]),
        classes=classes_lines(result["ratios"]),
        rows={model: rows_of(result, model) for model in result["conditions"]["models"]},
        conditions=result["conditions"],
    )
