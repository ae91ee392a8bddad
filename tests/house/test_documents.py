"""docs/architecture.md and CONTRIBUTING.md name files and folders that exist, and every room of the house."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from device_files import FILES, FLOORS, relative
from places import ROOT

PAGES = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", page.read_text("utf-8"))
    rooms = {path.parent.name for path in FILES}
    assert len(named) > 20
    missing = [n for n in named if not (ROOT / n).exists() and n.rstrip("/") not in rooms]
    assert not missing, missing


def test_the_page_shows_every_room() -> None:
    text = PAGES[0].read_text("utf-8")
    rooms = {relative(path.parent) for path in FILES}
    assert {f"{floor}/" for floor in FLOORS} <= set(re.findall(r"^\| `(\w+/)`", text, re.MULTILINE))
    missing = [room for room in rooms if "/" in room and f"`{room.split('/')[-1]}/`" not in text]
    assert not missing, missing
    assert len(text.splitlines()) < 100, "one page"


def test_ten_everyday_changes_each_have_a_path() -> None:
    table = PAGES[0].read_text("utf-8").partition("## Where do I change")[2]
    rows = re.findall(r"^\| (?!change|---)(.+?) \| (.+?) \|", table, re.MULTILINE)
    assert len(rows) >= 10 and all(re.search(r"`[\w/]+[./][\w.]*`", place) for _, place in rows), rows
