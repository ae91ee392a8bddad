"""tune.py at work, on a terminal: what it does, since when, and how much of its time is spent."""

from __future__ import annotations

import contextlib
from typing import Callable, Iterator

from gradseg.export.tuning.measure import Deadline


@contextlib.contextmanager
def shown(deadline: Deadline) -> Iterator[Callable[[str], None]]:
    """Gives what to call with a few words before each step. On stderr, if that is a terminal and rich is there.

    Drawn only then: a bar that moves by itself would take time from what is measured.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:  # a device without the extras
        yield lambda text: None
        return
    total = None if deadline.end is None else deadline.end - deadline.begin
    columns = [TimeElapsedColumn(), *([] if total is None else [BarColumn(bar_width=20)])]
    console = Console(stderr=True)
    with Progress(
        *columns,
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task("", total=total)

        def say(text: str) -> None:
            bars.update(task, description=text, completed=min(deadline.spent, total or 0.0), refresh=True)

        yield say
