"""The conditions of a measurement: without them a figure is not one. Standard library only."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from gradseg.commands import ROOT

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
            "board": read_text(Path("/proc/device-tree/model")) or None,  # of a Jetson, a Raspberry Pi
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


def read_text(path: Path) -> str:
    """What a file of /proc or /sys says; "" where there is none."""
    try:
        return path.read_bytes().rstrip(b"\0").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def proc_bytes(path: Path, field: str) -> Optional[int]:
    """Bytes of a field such as "MemAvailable" in a file of /proc like meminfo; None where the system does not say."""
    found = re.search(rf"^{field}:\s*(\d+)", read_text(path), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class Others:
    """The share of our cores that other programs take from now until `share`, from Linux's counters."""

    def __init__(self) -> None:
        self._begin = _busy()

    def share(self, own: float) -> Optional[float]:
        """0..1; None where the system does not count. own: seconds of CPU that our processes took since."""
        now = _busy()
        if now is None or self._begin is None or now[1] <= self._begin[1]:
            return None
        whole = now[1] - self._begin[1]
        return min(1.0, max(0.0, (now[0] - self._begin[0] - own) / whole))


def _busy() -> Optional[Tuple[float, float]]:
    """(busy, all) seconds of the cores that this process may use, since the machine started."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    wanted = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    busy = whole = 0
    for line in read_text(Path("/proc/stat")).splitlines():
        name, *counts = line.split()
        if name in wanted:
            ticks = [int(count) for count in counts[:8]]  # user nice system idle iowait irq softirq steal
            whole += sum(ticks)
            busy += sum(ticks) - ticks[3] - ticks[4]
    clock = os.sysconf("SC_CLK_TCK")
    return (busy / clock, whole / clock) if whole else None


def _cpu_model() -> str:
    named = r"^(?:model name|Model|Hardware)[^\S\n]*:[^\S\n]*(\S.*)"
    found = re.search(named, read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _versions() -> Dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            versions["opencv" if name == "cv2" else name] = str(version)
    return versions


def _commit() -> Optional[Dict[str, Any]]:
    """Hash and dirty flag of the repository that this file lies in; None for an installed package."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git(ROOT, "rev-parse", "HEAD").strip()
        return {"hash": head, "dirty": bool(_git(ROOT, "status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=True
    )
    return done.stdout.decode("utf-8", "replace")
