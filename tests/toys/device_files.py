"""Which files a device runs: computed from the imports of what is started there, not listed by hand."""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from places import ROOT

# each imports only from those before it; export and train stand side by side
FLOORS = ("base", "models", "data", "runtime", "graphs", "calibration", "export", "train", "benchmarks")
FILES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
DEVICE_FOLDERS = ("base", "data", "runtime")  # whole: programs of users import any of it
DEVICE_SCRIPTS = ("export/to_trt.py", "benchmarks/latency.py", "benchmarks/accuracy.py", "benchmarks/gpu.py")
SPEC = ("models/spec.py", "base/errors.py", "base/files.py", "models/metadata.py")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = relative(path)[: -len(".py")].split("/")
    return ".".join(["gradseg", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def imported(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import in a file, wherever it stands; relative imports come out as '.'."""
    return names_of(ast.walk(ast.parse(path.read_text("utf-8"))))


def names_of(nodes: Iterable[ast.AST]) -> list[tuple[str, int]]:
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." if node.level else str(node.module), node.lineno))
            if (node.module or "").startswith("gradseg"):
                found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: nothing inside functions, nor under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


@functools.cache
def needs(path: Path) -> frozenset[Path]:
    """Our files that importing `path` runs first, the packages' __init__ among them."""
    modules = {module_of(file): file for file in FILES}
    names = {name for name, _ in names_of(at_import(ast.parse(path.read_text("utf-8"))))} | {module_of(path)}
    parts = {".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)}
    return frozenset(modules[name] for name in parts if name in modules) - {path}


@functools.cache
def device_files() -> tuple[Path, ...]:
    """Everything that runs on a device: its folders, its scripts, and all that they import when they start."""
    waiting = [path for path in FILES if relative(path).split("/")[0] in DEVICE_FOLDERS]
    waiting += [ROOT / name for name in (*DEVICE_SCRIPTS, *SPEC) if (ROOT / name).exists()]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += needs(path)
    return tuple(sorted(found))


@functools.cache
def ruffs_python_3_8() -> tuple[Path, ...]:
    """The files that pyproject.toml has ruff check for Python 3.8: all but the folders it names a newer one for."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'target-version = "py38"' in text
    section = text.partition("[tool.ruff.per-file-target-version]")[2].partition("\n[")[0]
    newer = re.findall(r'(?m)^"([^"]+)" = "py310"$', section)
    return tuple(path for path in FILES if not any(fnmatch.fnmatch(relative(path), pattern) for pattern in newer))
