"""Fixtures and helpers that several areas share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from places import SHARED

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same examples in every run, however slow
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def camvid_val() -> Path:
    """CamVid's validation folder, where it lies beside the project."""
    folder = SHARED / "data" / "camvid" / "val"
    if not folder.is_dir():
        pytest.skip(f"needs CamVid at {folder} (images/ and labels/)")
    return folder


@pytest.fixture(scope="session")
def highway() -> Path:
    """The real dash-camera clip, where it lies beside the project."""
    clip = SHARED / "data" / "video" / "highway.mp4"
    if not clip.is_file():
        pytest.skip(f"needs the dash-camera clip at {clip}")
    return clip
