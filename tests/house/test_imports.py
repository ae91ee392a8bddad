"""What a device needs: imports with NumPy and OpenCV alone, floors without back edges, no circles, Python 3.8."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from device_files import FILES, FLOORS, ROOT, device_files, imported, module_of, relative, ruffs_python_3_8

from gradseg.base import conditions

NEEDS_TORCH = {"models/networks/erfnet.py", "models/grouping.py", "models/checkpoint.py", "models/counts.py"}
BLOCKED = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "tensorrt_rtx_libs",
    "rich",
    "cuda",
    "pycuda",
    "onnxsim",
    "jinja2",
)
PYTHON_3_8 = sorted({*device_files(), *ruffs_python_3_8()})


def test_there_is_something_to_check() -> None:
    names = {relative(path) for path in device_files()}
    assert {"runtime/run_video.py", "export/to_trt.py", "models/spec.py", "calibration/cost/accuracy.py"} <= names
    assert len(names) > 60 and {relative(p).split("/")[0] for p in FILES} == set(FLOORS)
    assert not NEEDS_TORCH & names


def test_device_modules_import_with_numpy_and_opencv_alone() -> None:
    code = f"""
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
for name in {[module_of(p) for p in device_files()]!r}:
    importlib.import_module(name)
foreign = {{m.split(".")[0] for m in sys.modules}} & set({BLOCKED!r})
assert not foreign, foreign
from gradseg.runtime import Segmenter
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_floors_have_no_back_edges() -> None:
    problems = []
    for path in FILES:
        own = relative(path).split("/")[0]
        for name, line in imported(path):
            where, parts = f"{relative(path)}:{line}", name.split(".")
            if parts[0] in FLOORS or name == ".":
                problems.append(f"{where}: import of {name}; write gradseg.…")
            elif parts[0] == "gradseg" and len(parts) > 1 and parts[1] in FLOORS and not may_import(own, parts[1]):
                problems.append(f"{where}: {own} must not import {name}")
    assert not problems, "\n".join(problems)


def may_import(own: str, other: str) -> bool:
    return own == other or ({own, other} != {"train", "export"} and FLOORS.index(other) < FLOORS.index(own))


def test_no_imports_in_a_circle() -> None:
    """Imports inside functions count too."""
    modules = {module_of(path): path for path in FILES}
    after = {path: [(modules[n], line) for n, line in imported(path) if n in modules] for path in FILES}
    done: set[Path] = set()

    def visit(path: Path, way: list[Path]) -> None:
        for other, line in after[path]:
            if other == path or other.name == "__init__.py" or other in done:
                continue
            circle = " → ".join(map(relative, [*way, path, other]))
            assert other not in way, f"{relative(path)}:{line} closes a circle: {circle}"
            visit(other, [*way, path])
        done.add(path)

    for path in FILES:
        visit(path, [])


def test_what_engines_are_made_by_counts_as_their_code() -> None:
    """tune and versus measure anew when any of it changed: every floor below those that only train or measure."""
    assert tuple(floor for floor in FLOORS if floor not in ("train", "benchmarks")) == conditions.ENGINE_CODE


def test_no_room_is_overfull() -> None:
    """A newcomer sees a folder's files at a glance; scripts stand at the door, passes are a list by nature."""
    rooms: dict[str, int] = {}
    for path in FILES:
        script = '__name__ == "__main__"' in path.read_text("utf-8")
        rooms[relative(path.parent)] = rooms.get(relative(path.parent), 0) + (not script and path.name != "__init__.py")
    overfull = {room: count for room, count in rooms.items() if count > 18 and not room.endswith("/passes")}
    assert not overfull, overfull


def test_no_file_shadows_a_module_that_is_imported() -> None:
    """A script run as a file puts its own folder first on sys.path."""
    names = {name.split(".")[0] for path in FILES for name, _ in imported(path)}
    taken = names | set(sys.stdlib_module_names) | set(BLOCKED)
    shadows = [relative(path) for path in FILES if path.stem in taken]
    assert not shadows, shadows


@pytest.mark.parametrize("path", PYTHON_3_8, ids=relative)
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


# Methods of objects, whose class vermin (test_device_python.py) cannot know: its name says when it came
NEW_METHODS = {
    **dict.fromkeys(("removeprefix", "removesuffix", "is_relative_to", "with_stem", "randbytes"), "3.9"),
    **dict.fromkeys(("bit_count", "hardlink_to"), "3.10"),
    **dict.fromkeys(("stdlib_module_names",), "3.10"),
    **dict.fromkeys(("add_note", "with_segments"), "3.11"),
}
NEW_KEYWORDS = {  # (what is called, keyword): since
    ("zip", "strict"): "3.10",
    ("dataclass", "slots"): "3.10",
    ("dataclass", "kw_only"): "3.10",
    ("write_text", "newline"): "3.10",
    ("read_text", "newline"): "3.13",
    ("dict", "strict"): "3.10",
    ("glob", "case_sensitive"): "3.12",
    ("rglob", "case_sensitive"): "3.12",
    ("ThreadPoolExecutor", "cancel_futures"): "3.9",
    ("shutdown", "cancel_futures"): "3.9",
    ("NamedTemporaryFile", "delete_on_close"): "3.12",
    ("TemporaryDirectory", "ignore_cleanup_errors"): "3.10",
}


def newer_than_3_8(node: ast.expr) -> str:
    """Why an expression would fail on Python 3.8, or ''."""
    generics = ("list", "dict", "tuple", "set", "frozenset", "type", "deque")
    if isinstance(node, ast.Subscript):
        if isinstance(node.value, ast.Name) and node.value.id in generics:
            return f"{node.value.id}[…] is evaluated; use typing"
        if isinstance(node.value, ast.Attribute) and node.value.attr == "ndarray":
            return "np.ndarray[…] is evaluated; it cannot be subscripted before Python 3.9"
    if isinstance(node, ast.Attribute) and node.attr in NEW_METHODS:
        return f".{node.attr} came with Python {NEW_METHODS[node.attr]}"
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for keyword in node.keywords:
            since = NEW_KEYWORDS.get((name, keyword.arg or ""))
            if since:
                return f"{name}({keyword.arg}=…) came with Python {since}"
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
        ("path.is_relative_to(other)", True),
        ("path.write_text('a', newline='')", True),
        ("pool.shutdown(cancel_futures=True)", True),
        ("A = Tuple[int, int]", False),
    ],
)
def test_the_check_itself(code: str, fails: bool) -> None:
    assert any(newer_than_3_8(node) for node in runtime_nodes(ast.parse(code))) is fails
