"""The ceilings of this machine, measured: arithmetic by the best kernels installed, memory by copies and reads.

Arithmetic is what the fastest of several well-kept libraries reaches on a large product or convolution, or, where the
native extension measures that, on registers alone; the result names which. Memory: the faster of copying (bytes read
and written) and reading, on sizes that fit L2, L3 and neither. Every measurement is a process of its own.

Layers are placed against them by Williams, Waterman and Patterson's roofline (CACM 2009), with multiply-accumulates in
place of FLOPs: a layer of intensity I (multiply-accumulates per byte) can do at most min(peak, I x bandwidth) of them
per second. Its floor is the time that this takes; of a layer that only moves bytes, the time that they take.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.json_process import environment_for
from gradseg.base.packages import install
from gradseg.benchmarks.ceilings.peaks import SOURCES

SCRIPT = Path(__file__).resolve().parent / "peaks.py"
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL = {"L2": 512 << 10, "L3": 8 << 20}  # where the system does not say
LIMIT_S = 180
KINDS = ("fp32", "bf16", "int8")
LEVELS = ("L2", "L3", "DRAM")
TOLERANCE = 1.05  # of a ceiling, for the noise of a layer's time
Say = Callable[[str], None]


def cache_sizes(folder: Path = CACHES) -> Dict[str, int]:
    """Bytes of {"L2": of one core, "L3": of all}; a machine without L3 gets its L2 for it."""
    found: Dict[str, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text("ascii").strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind in ("Unified", "Data") and level in ("2", "3") and size[:-1].isdigit():
            found[f"L{level}"] = int(size[:-1]) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    if not found:
        return dict(USUAL)
    found.setdefault("L2", min(USUAL["L2"], found.get("L3", USUAL["L2"])))
    found.setdefault("L3", found["L2"])
    return found


def sizes_for(caches: Mapping[str, int], threads: int) -> Dict[str, int]:
    """Bytes that each thread works on: half of its L2, half of its part of L3, four times all of L3."""
    return {
        "L2": caches["L2"] // 2,
        "L3": max(caches["L2"], caches["L3"] // 2 // threads),
        "DRAM": 4 * max(caches["L3"], USUAL["L3"]) // threads,
    }


def measure_ceilings(threads: int, say: Say = print) -> Dict[str, Any]:
    """{"threads", "macs_per_s": {kind: {"best", "source", "all": {source: rate or reason}}}, "bytes_per_s": {level:
    {"best", "copy", "read", "bytes_per_thread"}}, "caches"}."""
    caches = cache_sizes()
    arithmetic: Dict[str, Any] = {}
    for kind in KINDS:
        answers = {source: _asked(source, kind, threads) for source in SOURCES}
        arithmetic[kind] = best_of(
            {name: found.get("macs_per_s", found.get("missing")) for name, found in answers.items()}
        )
        if arithmetic[kind]:
            say(f"{kind} x{threads}: {arithmetic[kind]['best'] / 1e9:.1f} GMAC/s ({arithmetic[kind]['source']})")
    if not arithmetic["fp32"]:
        raise GradsegError(f"no library here could measure FP32 arithmetic: {install('ort', 'onnxruntime')}", 3)
    memory: Dict[str, Any] = {}
    for level, size in sizes_for(caches, threads).items():
        answer = _asked("memory", str(size), threads)
        if "missing" in answer:
            raise GradsegError(f"memory cannot be measured here: {answer['missing']}", 3)
        copy, read = answer["copy_bytes_per_s"], answer["read_bytes_per_s"]
        memory[level] = {"best": max(copy, read), "copy": copy, "read": read, "bytes_per_thread": size}
        say(f"{level} x{threads}: {max(copy, read) / 1e9:.1f} GB/s (copy {copy / 1e9:.1f}, read {read / 1e9:.1f})")
    return {"threads": threads, "macs_per_s": arithmetic, "bytes_per_s": memory, "caches": caches}


def best_of(rates: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """The fastest source, with all that was tried; None if none could do it."""
    known = [(rate, source) for source, rate in rates.items() if isinstance(rate, float)]
    best, source = max(known, default=(None, None))
    return {"best": best, "source": source, "all": dict(rates)} if known else None


def ceilings_of(measured: Mapping[str, Any]) -> Ceilings:
    """What `measure_ceilings` found, as the numbers that layers are placed against."""
    caches, threads = measured["caches"], measured["threads"]
    return Ceilings(
        {kind: found["best"] for kind, found in measured["macs_per_s"].items() if found},
        {level: measured["bytes_per_s"][level]["best"] for level in LEVELS},
        {"L2": caches["L2"] * threads, "L3": caches["L3"]},
    )


def _asked(source: str, what: str, threads: int) -> Dict[str, Any]:
    """One measurement's answer; {"missing": reason} also for a process that fails."""
    blas = "1" if source == "memory" else str(threads)
    environment = {**environment_for(), **{f"{name}_NUM_THREADS": blas for name in ("OMP", "OPENBLAS", "MKL", "BLIS")}}
    command = [sys.executable, str(SCRIPT), source, what, str(threads)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"missing": f"took longer than {LIMIT_S} s"}
    if done.returncode:
        last = "".join(done.stderr.splitlines()[-1:])[:200]
        return {"missing": last or f"ended with exit code {done.returncode}"}
    answer: Dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@dataclass(frozen=True)
class Layer:
    """One step of an engine. name: the engine's. op, kernel: its operator, and what computes it there. kind: of KINDS,
    or "int16", the arithmetic. macs: multiply-accumulates per run. bytes_moved: inputs, weights and outputs, once
    each. ms: median. nodes: the network's nodes that it stands for; none for a conversion that the engine put in
    between.
    """

    name: str
    op: str
    kernel: str
    kind: str
    macs: int
    bytes_moved: int
    ms: float
    nodes: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Ceilings:
    """Of a number of threads. macs_per_s: by kind; int16 has half of int8's, as the same instructions sum two products
    of it where they sum four of those; another kind that is missing counts as fp32. bytes_per_s: by level.
    sizes: bytes that the caches L2 (of all these threads) and L3 hold; what fits in neither comes from DRAM.
    """

    macs_per_s: Mapping[str, float]
    bytes_per_s: Mapping[str, float]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def peak(self, kind: str) -> float:
        if kind == "int16" and "int8" in self.macs_per_s:
            return self.macs_per_s["int8"] / 2
        return self.macs_per_s.get(kind, self.macs_per_s["fp32"])

    def level(self, bytes_moved: int) -> str:
        """The nearest level that holds so many bytes: none can be faster for a layer that touches them all."""
        return next((name for name in LEVELS[:-1] if bytes_moved <= self.sizes.get(name, 0)), LEVELS[-1])

    def floor_ms(self, kind: str, macs: int, bytes_moved: int) -> float:
        memory = bytes_moved / self.bytes_per_s[self.level(bytes_moved)]
        return 1000 * max(macs / self.peak(kind), memory)

    def bound(self, kind: str, macs: int, bytes_moved: int) -> str:
        """ "arithmetic", or the level of memory that is the narrower limit."""
        level = self.level(bytes_moved)
        return "arithmetic" if macs / self.peak(kind) >= bytes_moved / self.bytes_per_s[level] else level


def placed(layer: Layer, ceilings: Ceilings) -> Dict[str, Any]:
    """The layer with its floor. share: of what its ceiling allows, 1 at the ceiling; above 1 where data that count as
    moved did not move, for instance what another layer left in a nearer cache."""
    work = (layer.kind, layer.macs, layer.bytes_moved)
    floor = ceilings.floor_ms(*work)
    return {
        **asdict(layer),
        "nodes": list(layer.nodes),
        "macs_per_byte": layer.macs / layer.bytes_moved if layer.bytes_moved else None,
        "gmac_per_s": layer.macs / layer.ms / 1e6 if layer.ms else None,
        "attainable_gmac_per_s": layer.macs / floor / 1e6 if layer.macs else None,
        "bound": ceilings.bound(*work),
        "floor_ms": floor,
        "share": floor / layer.ms if layer.ms else None,
        "lost_ms": layer.ms - floor,
    }


def above_peak(rows: Sequence[Mapping[str, Any]], ceilings: Ceilings) -> List[str]:
    """Layers faster than the arithmetic ceiling, which then was not one: the machine was busy when it was measured."""
    return [row["name"] for row in rows if (row["gmac_per_s"] or 0.0) * 1e9 > TOLERANCE * ceilings.peak(row["kind"])]


def totals(rows: Sequence[Mapping[str, Any]], frame_ms: Optional[float]) -> Dict[str, Any]:
    """Sums over placed layers. frame_ms: of a frame without profiling; outside_ms: what no layer accounts for (negative
    where profiling slows the layers down)."""
    names = ("macs", "bytes_moved", "ms", "floor_ms")
    macs, moved, layers_ms, floor = (sum(row[name] for row in rows) for name in names)
    time = frame_ms or layers_ms
    return {
        "layers": len(rows),
        "macs": macs,
        "bytes_moved": moved,
        "layers_ms": layers_ms,
        "frame_ms": frame_ms,
        "outside_ms": None if frame_ms is None else frame_ms - layers_ms,
        "floor_ms": floor,
        "gmac_per_s": macs / time / 1e6 if time else None,
        "share": floor / time if time else None,
    }


def by_group(rows: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """Time by operator and arithmetic, the most first."""
    found: Dict[Tuple[str, str], Dict[str, Any]] = {}
    for row in rows:
        op, kind = row["op"], row["kind"]
        empty = {"op": op, "kind": kind, "layers": 0, "macs": 0, "ms": 0.0, "floor_ms": 0.0}
        group = found.setdefault((op, kind), empty)
        group["layers"] += 1
        for name in ("macs", "ms", "floor_ms"):
            group[name] += row[name]
    return sorted(found.values(), key=lambda group: -float(group["ms"]))
