"""HTML pages from jinja2's templates: each a file of its own, no script, no network, every text escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

ABSENT = "–"


def rendered(template: Path, **known: Any) -> str:
    """The page of a template that extends `page.html.j2`. known: what it speaks of."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(percent=percent, points=points, indented=indented)
    pages.globals["ABSENT"] = ABSENT
    return pages.get_template(template.name).render(known)


def indented(known: Any) -> str:
    return json.dumps(known, indent=2, ensure_ascii=False)


def percent(value: Optional[float], digits: int = 2) -> str:
    return ABSENT if value is None else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A change with its sign."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")
