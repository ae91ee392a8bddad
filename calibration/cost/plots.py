"""Plots of calibration's results. matplotlib is imported when one is drawn, and by nothing else here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Union

from gradseg.base.files import atomic_path
from gradseg.base.packages import need

if TYPE_CHECKING:
    from gradseg.calibration.cost.ranking import Effect, Ranking

SHOWN = 40  # layers
COLOUR, FAINT = "#2f5d9b", "#9db8dc"


def new_figure(width: float, height: float, what: str = "--plot") -> Any:
    """A matplotlib figure that belongs to no window, inches. GradsegError where matplotlib is not installed.

    what: needs it, for the message.
    """
    need(what, "export", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_ranking(ranking: Ranking, title: str, path: Union[str, Path]) -> None:
    """Writes a PNG: for the worst layers, what INT8 does to mIoU (without labels: to the labels), and their noise."""
    rows = ranking.effects[:SHOWN]
    figure = new_figure(11, 1.6 + 0.2 * len(rows))
    change, noise = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    if ranking.base is not None:
        change.barh(places, [row.miou_change or 0.0 for row in rows], color=COLOUR)
        change.set_xlabel("change of mIoU, points")
    else:
        change.barh(places, [100 * (1 - row.agreement) for row in rows], color=COLOUR)
        change.set_xlabel("labels changed, %")
    own = _decibels(noise, rows, "sqnr_db", COLOUR, "of the layer's own output")
    scores = _decibels(noise, rows, "scores_sqnr_db", FAINT, "of the scores")
    if own or scores:
        noise.legend(fontsize=8)
    noise.set_xlabel("signal to quantisation noise, dB (more is better)")
    change.set_yticks(places, [row.layer.name for row in rows], fontsize=7)
    change.set_ylim(len(rows) - 0.4, -0.6)
    change.axvline(0, color="0.2", linewidth=0.8)
    for axis in (change, noise):
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
    more = f" (the worst {len(rows)} of {len(ranking.effects)})" if len(rows) < len(ranking.effects) else ""
    figure.suptitle(f"One layer in INT8 at a time{more}\n{title}", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(str(temporary), format="png", metadata={"Software": None})


def _decibels(axis: Any, rows: Any, field: str, colour: str, label: str) -> List[float]:
    """Draws a point for every layer that has a figure; the figures."""
    effects: List[Effect] = list(rows)
    known = [(index, getattr(effect, field)) for index, effect in enumerate(effects)]
    drawn = [(index, value) for index, value in known if value is not None]
    axis.plot([value for _, value in drawn], [index for index, _ in drawn], "o", color=colour, label=label)
    return [value for _, value in drawn]
