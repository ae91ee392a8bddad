"""The README is for newcomers, every page's links lead somewhere, and what can be asked for is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT

from gradseg.data.specs import SCHEMES
from gradseg.models.spec import ARCHS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def test_a_newcomer_reads_it_to_the_end() -> None:
    assert len(README.splitlines()) <= 160


def test_the_test_command_is_what_ci_runs() -> None:
    assert re.search(r"(?m)^make test\b", README)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def headings(page: Path) -> set[str]:
    """What links with # may name."""
    lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("#")]
    return {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_sections_linked_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        path, _, section = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith("http"):
            assert target.exists(), link
            assert not section or section in headings(target), link


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_a_page_can_be_found(page: Path) -> None:
    assert page.stem == "README" or f"({page.name})" in (ROOT / "docs" / "README.md").read_text("utf-8")


def test_ids_and_schemes_are_all_named() -> None:
    text = (ROOT / "docs" / "train.md").read_text("utf-8")
    stems = {re.sub(r"(s?)(-star)?(-light)?$", "", arch) if arch.startswith("d") else arch for arch in ARCHS}
    assert all(f"`{stem}`" in text for stem in stems)
    assert all(f"`{scheme}:" in text for scheme in SCHEMES)
