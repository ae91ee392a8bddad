"""The bit of HTML that pages of figures are made of: no script, no network, every text escaped unless it is Markup."""

from __future__ import annotations

import html
from typing import Iterable, Optional, Sequence, Tuple, Union

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 76rem; margin: 0 auto;
  padding: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.35rem; margin-top: 3rem; border-top: 2px solid #d5dae0;
  padding-top: 1rem; } h3 { font-size: 1.05rem; margin-top: 2rem; }
a { color: #1f4f8f; } .note { color: #4a5361; } .bad { color: #9a2a10; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .25rem .45rem; border-bottom: 1px solid #e3e7ec; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; } thead th { border-bottom: 2px solid #aab3bf;
  vertical-align: bottom; } th { white-space: normal; } tbody th { min-width: 14rem; }
.words { white-space: normal; display: inline-block; min-width: 15rem; text-align: left; }
tr.best th, tr.best td { background: #eaf3ec; } tr.float th, tr.float td { background: #f3f5f8; }
figure { margin: 1rem 0; } figcaption { color: #4a5361; font-size: .8125rem; } img { max-width: 100%; height: auto; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .5rem; margin: 0 0 1.5rem; }
.frames figure { margin: 0; } .frames img { width: 100%; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; list-style: none; font-size: .8125rem; }
.legend span { display: inline-block; width: .9rem; height: .9rem; border: 1px solid #888; vertical-align: -.1rem;
  margin-right: .3rem; }
pre { background: #f3f5f8; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8125rem; }
@media print { h2 { break-before: page; } figure, tr { break-inside: avoid; } }
"""
ABSENT = "–"


class Markup(str):
    """Text that is HTML already."""


Cell = Union[str, Markup]


def escaped(text: object) -> str:
    return text if isinstance(text, Markup) else html.escape(str(text), quote=True)


def tag(name: str, content: Cell, style: str = "") -> str:
    return f"<{name}{f' class={chr(34)}{style}{chr(34)}' if style else ''}>{escaped(content)}</{name}>"


def table(caption: str, head: Sequence[str], rows: Iterable[Tuple[str, Sequence[Cell]]]) -> str:
    """rows: (CSS class, cells), the first cell is the row's heading."""
    lines = [f'<div class="scroll"><table><caption>{escaped(caption)}</caption><thead><tr>']
    lines += [f'<th scope="col">{escaped(each)}</th>' for each in head]
    lines.append("</tr></thead><tbody>")
    for style, cells in rows:
        inner = "".join(tag("td", cell) for cell in cells[1:])
        lines.append(f'<tr class="{style}"><th scope="row">{escaped(cells[0])}</th>{inner}</tr>')
    return "".join(lines) + "</tbody></table></div>"


def percent(value: Optional[float], digits: int = 2) -> str:
    return ABSENT if value is None else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A change with its sign."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(tag("li", line) for line in lines) + "</ul>"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; `parts` are HTML."""
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escaped(title)}</title><style>{STYLE}</style></head>'
    )
    return f"{head}\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
