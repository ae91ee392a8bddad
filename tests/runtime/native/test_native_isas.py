"""Instruction sets of the native engine: the same bytes from each, in every tensor."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT

from gradseg.runtime.native.library import OpStruct, TensorStruct, library_path

PROGRAMS = 60
NAMES = ("avx512-vnni", "avx-vnni", "avx2", "neon-i8mm", "neon-dotprod")


@pytest.fixture(scope="module")
def library() -> Path:
    found = library_path()
    if found is None or not found.is_file():
        pytest.skip("needs the native library: pip install -e . with a C compiler")
    return found


@pytest.fixture(scope="module")
def compare(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """compare_isas.c beside this file, compiled against the library that is installed."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    program = tmp_path_factory.mktemp("native") / "compare_isas"
    source = Path(__file__).with_name("compare_isas.c")
    include = f"-I{ROOT / 'runtime' / 'native'}"
    command = [compiler, "-O1", include, str(source), str(library), f"-Wl,-rpath,{library.parent}", "-pthread", "-o"]
    subprocess.run([*command, str(program)], check=True)
    return program


@pytest.mark.parametrize("name", NAMES)
def test_random_programs_give_the_same_bytes_as_plain_c(compare: Path, name: str) -> None:
    ran = subprocess.run([str(compare), name, "scalar", str(PROGRAMS)], capture_output=True, text=True)
    if ran.returncode == 3:
        pytest.skip(ran.stdout.strip())
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_weight_that_not_every_instruction_set_can_take_is_refused(library: Path) -> None:
    native = ctypes.CDLL(str(library))
    native.gs_create.restype = ctypes.c_void_p
    ones = (ctypes.c_float * 64)(*[1.0] * 64)
    weight = (ctypes.c_int8 * 48)(*[0] * 47, -128)
    tensors = (TensorStruct * 2)(TensorStruct(4, 4, 3, 0, 0, 0), TensorStruct(4, 4, 16, 0, 0, 0))
    at = {name: ctypes.addressof(ones) for name in ("weight", "scale", "bias")}
    every = dict.fromkeys(("groups", "kh", "kw", "sy", "sx", "dy", "dx", "oy", "ox"), 1)
    every.update(residual=-1, out_h=4, out_w=4, **at)
    conv = OpStruct(**{**every, "kind": 0, "input": 0, "output": 1, "cin": 3, "cout": 16})
    conv.weight = ctypes.addressof(weight)
    head = OpStruct(**{**every, "kind": 4, "input": 1, "output": -1, "cin": 16, "cout": 2})
    error = ctypes.create_string_buffer(200)
    assert not native.gs_create(tensors, 2, (OpStruct * 2)(conv, head), 2, 1, None, error, 200)
    assert error.value.decode() == "operator 0: a weight is -128; expected -127 to 127"
