"""Python 3.8 on the device: what ruff is told, what vermin finds, and real older Pythons where there are some.

`GRADSEG_DEVICE_PYTHON=/path/to/python` names one with NumPy and OpenCV (and TensorRT, if it has it): a Jetson's own
Python, a virtual environment of 3.8, a packed TensorRT 8.5.3. Without it those tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from device_files import ROOT, device_files, module_of, relative, ruffs_python_3_8
from runtime_toys import deployment_onnx

VARIABLE = "GRADSEG_DEVICE_PYTHON"


def test_ruff_checks_every_device_file_for_python_3_8() -> None:
    """pyproject.toml's [tool.ruff.per-file-target-version] covers what devices import."""
    told = set(ruffs_python_3_8())
    missing = [relative(path) for path in device_files() if path not in told and path.read_text("utf-8").strip()]
    assert not missing, f'add to [tool.ruff.per-file-target-version] as "py38": {missing}'


def vermin(*paths: Path) -> subprocess.CompletedProcess[str]:
    """vermin's findings newer than Python 3.8; annotations, which are never evaluated, do not count."""
    options = ["--no-config-file", "--no-tips", "--quiet", "--violations", "--target=3.8-"]
    command = [sys.executable, "-c", "from vermin import main; main()", *options, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_no_syntax_and_no_standard_library_newer_than_python_3_8() -> None:
    done = vermin(*sorted({*device_files(), *ruffs_python_3_8()}))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "code",
    ["import functools\n@functools.cache\ndef f(): pass", "import graphlib", "a = {1: 2} | {3: 4}", "math.lcm(1, 2)"],
)
def test_vermin_itself(code: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import math\n" + code + "\n", encoding="utf-8")
    done = vermin(tmp_path / "a.py")
    assert done.returncode == 1 and "3.9" in done.stdout, done.stdout + done.stderr


def bare_python_3_8() -> str:
    """Some Python 3.8 of this machine, with or without packages."""
    candidates = [*map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python")), shutil.which("python3.8") or ""]
    for python in filter(None, candidates):
        if subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:  # no empty shim
            return python
    pytest.skip("needs python3.8 on PATH or in ~/.pyenv/versions")


def run(python: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("VIRTUAL_ENV", None)
    return subprocess.run(
        [python, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=cwd, timeout=120
    )


def test_a_real_python_3_8_compiles_every_device_file(tmp_path: Path) -> None:
    program = "import sys\nfor name in sys.argv[1:]:\n    compile(open(name, encoding='utf-8').read(), name, 'exec')"
    done = run(bare_python_3_8(), "-c", program, *map(str, device_files()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_doctor_runs_on_a_bare_python_3_8(tmp_path: Path) -> None:
    done = run(bare_python_3_8(), "-S", str(ROOT / "runtime" / "doctor.py"), cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"(?m)^NumPy +none +problem$", done.stdout) and "Nothing can run here yet" in done.stdout


@pytest.fixture
def device_python() -> str:
    found = os.environ.get(VARIABLE)
    if not found:
        pytest.skip(f"needs {VARIABLE}=/path/to/python, one with NumPy and OpenCV as on a device")
    return found


def test_everything_imports_there(device_python: str, tmp_path: Path) -> None:
    names = [module_of(path) for path in device_files()]
    done = run(device_python, "-c", f"import importlib\nfor n in {names!r}: importlib.import_module(n)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_to_trt_there_builds_or_says_in_one_line_why_not(device_python: str, precision: str, tmp_path: Path) -> None:
    model = deployment_onnx(tmp_path / "m.onnx", precision="fp32")
    done = run(
        device_python,
        str(ROOT / "export" / "to_trt.py"),
        str(model),
        "--precision",
        precision,
        "-o",
        "o.plan",
        cwd=tmp_path,
    )
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 0:  # a device with TensorRT and its GPU
        assert (tmp_path / "o.plan").stat().st_size and (tmp_path / "o.plan.json").is_file()
        return
    assert done.returncode == 3 and len(errors) == 1, done.stdout + done.stderr
    assert re.match(r"error: (tensorrt \S+ cannot start|no TensorRT is importable|.*needs the onnx package)", errors[0])


def test_run_video_there(device_python: str, tmp_path: Path) -> None:
    script = str(ROOT / "runtime" / "run_video.py")
    assert run(device_python, script, "--help", cwd=tmp_path).returncode == 0
    (tmp_path / "m.plan").write_bytes(b"not a plan")
    done = run(device_python, script, "--engine", "m.plan", "scenes:frames=2", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: m.plan: no m.plan.json beside it"), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_doctor_there(device_python: str, tmp_path: Path) -> None:
    done = run(device_python, str(ROOT / "runtime" / "doctor.py"), "--json", "d.json", cwd=tmp_path)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    assert re.search(r"(?m)^OpenCV +\d\S* \(", done.stdout), done.stdout
