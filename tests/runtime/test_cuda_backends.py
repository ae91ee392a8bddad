"""cuda-python and pycuda: the names, arguments and values that are used, as the packages' own versions have them."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, Dict

import pytest
from cuda_toys import Device, cuda_python, pycuda
from places import TESTS
from plan_toys import CUDA_MODULES, GPU, hide, old_cuda_python, only_pycuda, put

from gradseg.base.errors import GradsegError
from gradseg.runtime.cuda import cuda_python_backend as backend
from gradseg.runtime.cuda import pycuda_backend as cuda_pycuda
from gradseg.runtime.cuda.open import open_cuda

# What the packages state, from their wheels: {version: {"module", "functions": {name: signature}, "constants"}}
RECORDED: Dict[str, Any] = json.loads((TESTS / "toys" / "cuda_surface.json").read_text())
SOURCE = inspect.getsource(backend)


def used() -> Dict[str, int]:
    """Every function of CUDA's runtime that the backend calls, with the number of arguments that it gives."""
    found: Dict[str, int] = {"cudaStreamEndCapture": 1, "cudaGetLastError": 0}  # called by attribute
    for name, rest in re.findall(r'_call\(\s*"(cuda\w+)"((?:,[^()]*(?:\([^()]*\))?)*)\)', SOURCE):
        found[name] = rest.count(",")
    for undo, name, rest in re.findall(r'_take\("(cuda\w+)", "(cuda\w+)"((?:, [^()]*)*)\)', SOURCE):
        found[name], found[undo] = rest.count(","), 1
    return found


def test_the_backends_calls_are_found() -> None:
    mentioned = set(re.findall(r'"(cuda[A-Z]\w+)"', SOURCE)) | {"cudaStreamEndCapture", "cudaGetLastError"}
    assert set(used()) == mentioned and len(mentioned) > 18


@pytest.mark.parametrize("version", RECORDED)
def test_each_version_has_what_is_used(version: str) -> None:
    recorded = RECORDED[version]
    assert recorded["module"] in backend.LAYOUTS
    for name, count in used().items():
        signature = recorded["functions"][name]
        assert signature.startswith(f"{name}(") and len(re.findall(r"[^(),]+(?=[,)])", signature)) == count, signature
    attributes = set(re.findall(r"self\._rt\.(cuda\w+(?:\.cuda\w+)?)", SOURCE)) - set(used())
    assert attributes == set(recorded["constants"]) - {"cudaError_t.cudaErrorMemoryAllocation"}
    assert recorded["constants"]["cudaError_t.cudaErrorMemoryAllocation"] == backend.OUT_OF_MEMORY


def test_the_stand_in_has_the_recorded_names_and_values() -> None:
    made = cuda_python(Device())
    for recorded in RECORDED.values():
        names = {name for name in vars(made) if re.match(r"cuda[A-Z]", name)}
        assert {name for name in names if callable(getattr(made, name))} <= set(recorded["functions"])
        for name in ("cudaStreamNonBlocking", "cudaEventDefault", "cudaEventDisableTiming"):
            assert getattr(made, name) == recorded["constants"][name]


def test_instantiating_a_graph_differs_between_versions_and_is_not_used() -> None:
    """Why the function with a longer name is used."""
    signatures = {version: entry["functions"]["cudaGraphInstantiate"] for version, entry in RECORDED.items()}
    assert len(set(signatures.values())) == 2 and '"cudaGraphInstantiate"' not in SOURCE


# -- which one is taken


def test_cuda_python_comes_first_in_either_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    for modules in ({"cuda.bindings.runtime": cuda_python(device)}, old_cuda_python(device)):
        hide(monkeypatch, *CUDA_MODULES)
        put(monkeypatch, {**modules, **only_pycuda(Device())})
        found = open_cuda("here", GPU)
        assert found.name == "cuda-python" and found.graphs
        found.close()


def test_pycuda_without_cuda_python_or_where_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    broken = cuda_python(device, "cudaSetDevice")
    for modules in ({}, {"cuda.bindings.runtime": broken}):
        hide(monkeypatch, *CUDA_MODULES)
        put(monkeypatch, {**modules, **only_pycuda(device)})
        found = open_cuda("here", GPU)
        assert found.name == "pycuda" and not found.graphs
        with pytest.raises(RuntimeError, match="pycuda has no CUDA graphs"):
            found.capture(None, lambda: True)
        found.close()
        found.close()


def test_why_neither_works_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    refuses = pycuda(device)

    def no_device() -> None:
        raise refuses.Error("cuInit failed: system not yet initialized")

    refuses.init = no_device
    hide(monkeypatch, *CUDA_MODULES)
    put(monkeypatch, {"cuda.bindings.runtime": cuda_python(device, "cudaSetDevice"), "pycuda.driver": refuses})
    wanted = r"here needs .*; cuda-python does not work here \(cudaSetDevice: 801\); pycuda does not work here \(cuInit"
    with pytest.raises(GradsegError, match=wanted) as caught:
        open_cuda("here", GPU)
    assert caught.value.exit_code == 3


def test_a_cuda_python_without_a_driver_library_raises_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As versions before 12.9 do it."""
    made = cuda_python(Device())

    def no_driver(number: int) -> Any:
        raise RuntimeError('Function "cuInit" not found')

    made.cudaSetDevice = no_driver
    hide(monkeypatch, *CUDA_MODULES)
    put(monkeypatch, {"cuda.bindings.runtime": made})
    with pytest.raises(GradsegError, match=r'cuda-python does not work here \(Function "cuInit" not found\)'):
        open_cuda("here", GPU)


def test_freeing_goes_on_after_an_error_and_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device, freed = Device(), []
    made = cuda_python(device)

    def fails(pointer: int) -> Any:
        freed.append(pointer)
        return (700,)

    made.cudaFree = fails
    hide(monkeypatch, *CUDA_MODULES)
    put(monkeypatch, {"cuda.bindings.runtime": made})
    found = open_cuda("here", GPU)
    for _ in range(2):
        found.device_buffer(10)
        found.pinned((2, 3))
        found.event()
        found.stream()
    found.close()
    found.close()
    assert len(freed) == 2 == len(device.memory) == device.held


@pytest.mark.parametrize("way", ["cuda-python", "pycuda"])
@pytest.mark.parametrize("what", ["device_buffer", "pinned"])
def test_too_little_memory(way: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    hide(monkeypatch, *CUDA_MODULES)
    if way == "cuda-python":
        made = cuda_python(device)
        made.cudaMalloc = made.cudaMallocHost = lambda count: (2, None)
        put(monkeypatch, {"cuda.bindings.runtime": made})
    else:
        old: Any = pycuda(device)

        def too_much(*_: Any) -> Any:
            raise old.MemoryError("cuMemAlloc failed: out of memory")

        old.mem_alloc = old.pagelocked_empty = too_much
        put(monkeypatch, {"pycuda.driver": old})
    found = open_cuda("m.plan", GPU)
    wanted = r"m\.plan: not enough memory for 3\.0 MB more; close other"
    with pytest.raises(GradsegError, match=wanted) as caught, found.current():
        found.pinned((1000, 3000)) if what == "pinned" else found.device_buffer(3_000_000)
    assert caught.value.exit_code == 3
    found.close()


def test_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    hide(monkeypatch, *CUDA_MODULES)
    put(monkeypatch, only_pycuda(Device()))
    sys.modules["pycuda"].VERSION_TEXT = "2024.1"  # type: ignore[attr-defined]
    assert cuda_pycuda.CudaPycuda.open("here").name == "pycuda 2024.1"  # type: ignore[union-attr]
    put(monkeypatch, {"cuda.bindings.runtime": cuda_python(Device())})
    sys.modules["cuda.bindings"].__version__ = "12.6.2"  # type: ignore[attr-defined]
    assert open_cuda("here", GPU).name == "cuda-python 12.6.2"
