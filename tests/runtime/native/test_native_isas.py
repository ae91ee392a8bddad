"""Instruction sets of the native engine: the same bytes from each, in every tensor."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT

from gradseg.runtime.native.library import Library, OpStruct, TensorStruct, library_path

INCLUDE, COMPARE = f"-I{ROOT / 'runtime' / 'native'}", str(Path(__file__).with_name("compare_isas.c"))
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
    command = [compiler, "-O1", INCLUDE, COMPARE, str(library), f"-Wl,-rpath,{library.parent}", "-pthread", "-o"]
    subprocess.run([*command, str(program)], check=True)
    return program


@pytest.mark.parametrize("name", NAMES)
def test_random_programs_give_the_same_bytes_as_plain_c(compare: Path, name: str) -> None:
    ran = subprocess.run([str(compare), name, "scalar", str(PROGRAMS)], capture_output=True, text=True)
    if ran.returncode == 3:
        pytest.skip(ran.stdout.strip())
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """compare_isas.c and the library for AArch64 in one program, by the compiler of `make wheels` if it is there."""
    qemu, gcc = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")
    python = Path(sys.executable) if find_spec("ziglang") else ROOT / "build" / "tools" / "bin" / "python"
    zig = [str(python), "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"] if python.exists() else None
    compiler = zig or (gcc and [gcc])
    if not (qemu and compiler):
        pytest.skip("needs qemu-aarch64 (qemu-user) and a compiler (gcc-aarch64-linux-gnu, or make wheels once)")
    program = tmp_path_factory.mktemp("aarch64") / "compare_isas"
    sources = [COMPARE, *map(str, (ROOT / "runtime" / "native").glob("*.c"))]
    options = ["-static", "-O3", "-g0", INCLUDE, *sources, "-pthread", "-lm", "-o", str(program)]
    subprocess.run([*compiler, *options], check=True)
    return [qemu, "-cpu", "max", str(program)]


@pytest.mark.parametrize("name", ["neon-i8mm", "neon-dotprod"])
def test_random_programs_give_the_same_bytes_on_an_emulated_aarch64(aarch64: list[str], name: str) -> None:
    ran = subprocess.run([*aarch64, name, "scalar", str(PROGRAMS)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="needs x86-64 and /proc/cpuinfo")
@pytest.mark.parametrize(("name", "flag"), [("avx512-vnni", "avx512_vnni"), ("avx2", "avx2")])
def test_the_instructions_of_this_cpu_are_known(library: Path, name: str, flag: str) -> None:
    """Some compilers link a `__builtin_cpu_supports` that says no to everything."""
    assert (Library(str(library)).isa(name) == name) == (flag in Path("/proc/cpuinfo").read_text().split())


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
