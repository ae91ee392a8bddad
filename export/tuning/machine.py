"""The machine that tune.py measures on: what its CPU can do, where threads go, and who else uses it."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import gradseg
from gradseg.base.conditions import conditions, read_text, usable_cores
from gradseg.calibration.qdq.cpu import cpu_flags

PACKAGES = ("numpy", "opencv-python-headless", "opencv-python", "onnx", "onnxruntime", "openvino", "torch")
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
BUSY = 0.1  # share of the cores that others may take before it is said
UNSTEADY = 1.25  # spread of a candidate's turns above which it is said


@dataclass(frozen=True)
class Placement:
    """threads: how many. cpus: the cores that the process keeps to; () leaves that to the system."""

    threads: int
    cpus: Tuple[int, ...] = ()

    @property
    def words(self) -> str:
        where = f" on cores {','.join(map(str, self.cpus))}" if self.cpus else ""
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}{where}"


def placements(threads: Optional[int], root: Path = Path("/sys/devices/system/cpu")) -> List[Placement]:
    """The ways of placing threads that are worth measuring here, the usual one first.

    One thread for each core that may be used; where cores share their arithmetic (SMT), also one for each pair; where
    some are slower (big.LITTLE), also the fast ones alone. `threads`: then only that.
    """
    if threads is not None:
        return [Placement(threads)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cores()))
    found = [Placement(len(cores))]
    for some in (_one_of_each(cores, root), _fast(cores, root)):
        if some and len(some) < len(cores):
            found.append(Placement(len(some), tuple(some)))
    return list(dict.fromkeys(found))


def _one_of_each(cores: Sequence[int], root: Path) -> List[int]:
    """The first of the cores that are siblings."""
    first: Dict[str, int] = {}
    for core in cores:
        first.setdefault(read_text(root / f"cpu{core}" / "topology" / "thread_siblings_list") or str(core), core)
    return list(first.values())


def _fast(cores: Sequence[int], root: Path) -> List[int]:
    """Cores with at least 3/4 of the highest capacity that the system names; [] where it names none."""
    capacity = {core: read_text(root / f"cpu{core}" / "cpu_capacity") for core in cores}
    if not all(text.isdecimal() for text in capacity.values()):
        return []
    most = max(int(text) for text in capacity.values())
    return [core for core, text in capacity.items() if 4 * int(text) >= 3 * most]


def has_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU multiplies bfloat16 by itself."""
    return not cpu_flags(cpuinfo).isdisjoint(BF16)


def governor() -> Optional[str]:
    """How the first core's clock is governed, None where the system does not say."""
    return read_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or None


def versions() -> Dict[str, str]:
    """Of the libraries that decide on a latency, installed or not loaded yet."""
    found = {"python": platform.python_version(), "gradseg": gradseg.__version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cpu_seconds(pids: Iterable[int]) -> Dict[int, float]:
    """Seconds of CPU that each process has taken so far; those that ended are missing."""
    found = {}
    for pid in pids:
        parts = read_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        if len(parts) > 13:
            found[pid] = (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    return found


def noise_warnings(load: Optional[float], others: Optional[float], unsteady: Sequence[Tuple[str, float]]) -> List[str]:
    """What makes the figures of this run doubtful, in words.

    load: the load average before it. others: from `Others`. unsteady: candidates' names and spreads.
    """
    said = []
    if load is not None and load > 0.5 * usable_cores():
        said.append(f"before it began the machine had a load of {load:.1f} on {usable_cores()} cores")
    if others is not None and others > BUSY:
        said.append(f"other programs took {100 * others:.0f} % of the cores while it measured")
    worst = max(unsteady, key=lambda each: each[1], default=("", 1.0))
    if worst[1] > UNSTEADY:
        said.append(f"turns of {worst[0]} differ by a factor of {worst[1]:.2f}")
    if governor() in ("powersave", "ondemand", "conservative"):
        said.append(f"the clock's governor is {governor()}, which changes it with the load")
    return said


def facts() -> Dict[str, Any]:
    """For the key of a result: another of these is another machine."""
    cpu = conditions()["device"]["cpu"]
    return {"machine": platform.machine(), "cpu": cpu, "cores": usable_cores(), "versions": versions()}
