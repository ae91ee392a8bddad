"""What a device needs: imports with NumPy and OpenCV alone, layers without back edges, Python 3.8 syntax."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("models", "data", "runtime", "calibration", "export", "train", "benchmarks")
NEEDS_TORCH = {"models/network.py", "models/grouping.py", "models/checkpoint.py", "models/counts.py"}
BLOCKED = (
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "rich",
    "cuda",
    "onnxsim",
)

FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


DEVICE = [
    p for p in FILES if relative(p).split("/")[0] in ("models", "data", "runtime") and relative(p) not in NEEDS_TORCH
]
ON_DEVICE_TOO = [
    p for p in FILES if relative(p) in ("export/to_trt.py", "benchmarks/latency.py", "benchmarks/accuracy.py")
]


def module_of(path: Path) -> str:
    parts = relative(path)[: -len(".py")].split("/")
    return ".".join(["gradseg", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def imported(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import in a file, wherever it stands; relative imports come out as '.'."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." if node.level else str(node.module), node.lineno))
            if node.module == "gradseg":
                found += [(f"gradseg.{alias.name}", node.lineno) for alias in node.names]
    return found


@functools.cache
def imported_anywhere() -> set[str]:
    return {name for path in FILES for name, _ in imported(path)}


def is_top(path: Path) -> bool:
    """A script that nothing imports stands above all layers, wherever it lies: calibration/report.py reads checkpoints
    through export, and no import can go in a circle through it."""
    return '__name__ == "__main__"' in path.read_text("utf-8") and module_of(path) not in imported_anywhere()


def test_there_is_something_to_check() -> None:
    assert len(DEVICE) > 20 and {relative(p).split("/")[0] for p in FILES} == set(LAYERS)


def test_device_modules_import_with_numpy_and_opencv_alone() -> None:
    code = f"""
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
for name in {[module_of(p) for p in DEVICE]!r}:
    importlib.import_module(name)
foreign = {{m.split(".")[0] for m in sys.modules}} & set({BLOCKED!r})
assert not foreign, foreign
from gradseg.runtime import Segmenter
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_layers_have_no_back_edges(path: Path) -> None:
    own = LAYERS.index(relative(path).split("/")[0])
    for name, line in imported(path):
        parts = name.split(".")
        assert parts[0] not in LAYERS, f"{relative(path)}:{line}: bare import of {name}; write gradseg.{name}"
        assert name != ".", f"{relative(path)}:{line}: relative import; write gradseg.…"
        if parts[0] == "gradseg" and len(parts) > 1 and parts[1] in LAYERS and not is_top(path):
            assert LAYERS.index(parts[1]) <= own, f"{relative(path)}:{line}: {LAYERS[own]} must not import {name}"


def test_no_file_shadows_a_module_that_is_imported() -> None:
    """A script run as a file puts its own folder first on sys.path."""
    names = {name.split(".")[0] for path in FILES for name, _ in imported(path)}
    taken = names | set(sys.stdlib_module_names) | set(BLOCKED)
    shadows = [relative(path) for path in FILES if path.stem in taken]
    assert not shadows, shadows


@pytest.mark.parametrize("path", DEVICE + ON_DEVICE_TOO, ids=relative)
def test_device_files_are_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 8))
    future = any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
    docstring_only = len(tree.body) <= 1
    assert future or docstring_only or path.name == "__init__.py", "needs `from __future__ import annotations`"
    problems = [
        f"{relative(path)}:{node.lineno}: {what}"
        for node in runtime_nodes(tree)
        for what in [newer_than_3_8(node)]
        if what
    ]
    assert not problems, problems


def runtime_nodes(tree: ast.AST) -> list[ast.expr]:
    """Every expression that is evaluated when the file runs: all but annotations and `if TYPE_CHECKING:` blocks."""
    skipped = set()
    for node in ast.walk(tree):
        unseen = [getattr(node, part, None) for part in ("annotation", "returns")]
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            unseen += node.body
        skipped |= {id(child) for inner in unseen if inner is not None for child in ast.walk(inner)}
    return [node for node in ast.walk(tree) if isinstance(node, ast.expr) and id(node) not in skipped]


def newer_than_3_8(node: ast.expr) -> str:
    """Why an expression would fail on Python 3.8, or ''."""
    generics = ("list", "dict", "tuple", "set", "frozenset", "type", "deque")
    if isinstance(node, ast.Subscript):
        if isinstance(node.value, ast.Name) and node.value.id in generics:
            return f"{node.value.id}[…] is evaluated; use typing"
        if isinstance(node.value, ast.Attribute) and node.value.attr == "ndarray":
            return "np.ndarray[…] is evaluated; it cannot be subscripted before Python 3.9"
    if isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix", "stdlib_module_names"):
        return f".{node.attr} came with Python 3.9"
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        keywords = {keyword.arg for keyword in node.keywords}
        if name == "zip" and "strict" in keywords:
            return "zip(strict=…) came with Python 3.10"
        if name == "dataclass" and keywords & {"slots", "kw_only"}:
            return "dataclass(slots=…, kw_only=…) came with Python 3.10"
        if name == "cache" and isinstance(node.func, ast.Attribute):
            return "functools.cache came with Python 3.9"
    return ""


@pytest.mark.parametrize(
    ("code", "fails"),
    [
        ("A = np.ndarray[int, int]", True),
        ("def f(a: np.ndarray[int, int]) -> list[int]: pass", False),
        ("x: dict[str, int] = {}", False),
        ("if TYPE_CHECKING:\n    A = np.ndarray[int, int]\nelse:\n    A = np.ndarray", False),
        ("if TYPE_CHECKING:\n    A = int\nelse:\n    A = np.ndarray[int, int]", True),
        ("A = tuple[int, ...]", True),
        ("list(zip(a, b, strict=True))", True),
        ("'a'.removeprefix('b')", True),
        ("A = Tuple[int, int]", False),
    ],
)
def test_the_check_itself(code: str, fails: bool) -> None:
    assert any(newer_than_3_8(node) for node in runtime_nodes(ast.parse(code))) is fails
