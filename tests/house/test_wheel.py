"""The installed wheel: complete, and its Segmenter runs where there is no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from device_files import FLOORS
from places import ROOT
from runtime_toys import deployment_onnx

PROGRAM = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "lightning_fabric", "rich", "matplotlib"):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, NoTorch())
import numpy as np
import gradseg
from gradseg.runtime import Segmenter

assert gradseg.__file__.startswith(sys.argv[1]), gradseg.__file__
frame = np.full((50, 70, 3), 255, np.uint8)
frame[:25] = 0
labels = Segmenter(sys.argv[2])(frame)
assert labels.dtype == np.uint8 and labels.shape == (50, 70), labels.shape
assert labels[0, 0] == 0 and labels[-1, -1] == 10, (labels[0, 0], labels[-1, -1])
print("segmented without torch")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("build") / "gradseg"
    copy.mkdir()
    for name in (*FLOORS, "src"):
        unwanted = shutil.ignore_patterns("*.egg-info", "__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    done = subprocess.run([*pip, "-w", str(copy.parent), str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(copy.parent.glob("*.whl"))


def test_wheel_holds_every_module(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"gradseg/{path.relative_to(ROOT)}" for name in FLOORS for path in (ROOT / name).rglob("*.py")}
    assert expected <= inside
    assert "gradseg/py.typed" in inside


def test_segmenter_from_the_wheel_without_torch(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    engine = deployment_onnx(tmp_path / "toy.onnx")
    environment = {**os.environ, "PYTHONPATH": str(target)}
    arguments = [sys.executable, "-c", PROGRAM, str(target), str(engine)]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "segmented without torch" in done.stdout
