"""The conditions of a measurement: without them a figure is not one. Standard library only."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Optional

# libraries whose version changes a result or a latency; reported if they are loaded
LIBRARIES = ("numpy", "cv2", "onnxruntime", "onnx", "torch", "tensorrt", "tensorrt_rtx", "openvino", "gradseg")
ENGINE_CODE = ("base", "models", "data", "runtime", "graphs", "calibration", "export")


def conditions(**extra: Any) -> Dict[str, Any]:
    """Where and with what a figure was made, as JSON types.

    device: {"cpu", "architecture", "cores" (of the machine), "usable_cores" (of this process), "board" or null}.
    threads: None unless given in `extra`. versions: of the libraries loaded in this process.
    commit: {"hash", "dirty"} of GradSeg's own repository, or null outside one. date: UTC, ISO 8601.
    `extra` adds fields or overrides them.
    """
    found: Dict[str, Any] = {
        "device": {
            "cpu": _cpu_model(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
            "board": _board(),
        },
        "threads": None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0).isoformat(),
    }
    found.update(extra)
    return found


@functools.lru_cache(maxsize=None)
def code_hash() -> str:
    """Of the code that engines are made and run by: what an older version made or measured is not this one's."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for folder in ENGINE_CODE for path in (root / folder).rglob("*")):
        if path.suffix in (".py", ".so", ".c", ".h") and path.is_file():
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def usable_cores() -> int:
    """Cores that this process may run on (its affinity), at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def proc_bytes(path: Path, field: str) -> Optional[int]:
    """Bytes of a field such as "MemAvailable" in a file of /proc like meminfo; None where the system does not say."""
    try:
        for line in path.read_text("utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _board() -> Optional[str]:
    """The board's name where the device tree has one (Jetson, Raspberry Pi), else None."""
    try:
        return Path("/proc/device-tree/model").read_bytes().rstrip(b"\0").decode("utf-8", "replace") or None
    except OSError:
        return None


def _versions() -> Dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            versions["opencv" if name == "cv2" else name] = str(version)
    return versions


def _commit() -> Optional[Dict[str, Any]]:
    """Hash and dirty flag of the repository that this file lies in; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        return {"hash": head, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=True
    )
    return done.stdout.decode("utf-8", "replace")
