"""The wheel: complete, for every Python of a platform or for any, and its Segmenter runs where there is no torch."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from device_files import FLOORS
from places import ROOT
from runtime_toys import deployment_onnx

import gradseg
from gradseg.runtime.native.library import ABI, VARIABLE

LIBRARY = "gradseg/runtime/native/_native.so"

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
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that the checkout stays clean; its C is compiled without the minutes of optimising."""
    copy = tmp_path_factory.mktemp("build") / "gradseg"
    copy.mkdir()
    for name in (*FLOORS, "src", "assets/ready"):
        unwanted = shutil.ignore_patterns("*.egg-info", "__pycache__", "*.so")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    setup = (ROOT / "setup.py").read_text("utf-8")
    assert '"-O3"' in setup
    (copy / "setup.py").write_text(setup.replace('"-O3"', '"-O0"'), "utf-8")
    return copy


def built(sources: Path, target: Path, **environment: str) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w"]
    environment = {**os.environ, **environment}
    command = [*pip, str(target), str(sources)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    if not (shutil.which("cc") and shutil.which("gcc")):
        pytest.skip("needs a C compiler: cc and gcc")
    return built(sources, sources.parent / "wheel")


@pytest.fixture(scope="module")
def pure(wheel: Path, sources: Path) -> Path:
    """Built where there is no compiler, after the other one: whose library must not get in."""
    return built(sources, sources.parent / "pure", CC="/nowhere/cc", LDSHARED="/nowhere/cc")


@pytest.mark.parametrize("name", ["wheel", "pure"])
def test_wheel_holds_every_module(name: str, request: pytest.FixtureRequest) -> None:
    inside = set(zipfile.ZipFile(request.getfixturevalue(name)).namelist())
    expected = {
        f"gradseg/{path.relative_to(ROOT)}"
        for name in FLOORS
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".py", ".j2")
    }
    assert expected <= inside
    assert {"gradseg/py.typed", *(f"gradseg/weights/dg2-star-light.{suffix}" for suffix in ("gsn", "onnx"))} <= inside
    assert not [path for path in inside if path.endswith((".pth", ".c", ".h"))]


def test_one_wheel_for_every_python_of_a_platform(wheel: Path, tmp_path: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"gradseg-{gradseg.__version__}-py3-none-{platform}.whl"
    assert wheel.stat().st_size < 3e6
    library = zipfile.ZipFile(wheel).extract(LIBRARY, tmp_path)
    assert ctypes.CDLL(library).gs_abi() == ABI
    assert b".debug_info" not in Path(library).read_bytes() and b".symtab" not in Path(library).read_bytes()


def test_without_a_compiler_the_wheel_is_for_any_platform_and_says_where_the_library_is(
    pure: Path, tmp_path: Path
) -> None:
    assert pure.name == f"gradseg-{gradseg.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(pure) as archive:
        assert LIBRARY not in archive.namelist()
        archive.extractall(tmp_path)
    code = "from gradseg.runtime.native.library import open_library; open_library()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop(VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "built on this machine; the wheels py3-none-manylinux_2_17_x86_64 and py3-none-manylinux" in done.stderr


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
