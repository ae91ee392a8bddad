"""Tables in the terminal. Python 3.8, standard library only."""

from __future__ import annotations

from typing import List, Sequence


def aligned(lines: Sequence[Sequence[str]]) -> List[str]:
    """Cells under the head, which comes first: the first column to the left, the others to the right; what has fewer
    cells than the head stands as it is behind its first."""
    head = lines[0]
    widths = [max(map(len, column)) for column in zip(*(line for line in lines if len(line) == len(head)))]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width) if len(line) == len(head) else cell
            for index, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]
