"""The ceilings of this machine, measured: arithmetic by the best kernels installed, memory by copies and reads.

Arithmetic is what the fastest of several well-kept libraries reaches on a large product or convolution, or, where the
native extension measures that, on registers alone; the result names which. Memory: the faster of copying (bytes read
and written) and reading, on sizes that fit L2, L3 and neither. Every measurement is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional

from gradseg.base.errors import GradsegError
from gradseg.base.json_process import environment_for
from gradseg.base.packages import install
from gradseg.benchmarks.ceilings.peaks import SOURCES
from gradseg.benchmarks.ceilings.place import KINDS, LEVELS, Ceilings

SCRIPT = Path(__file__).resolve().parent / "peaks.py"
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL = {"L2": 512 << 10, "L3": 8 << 20}  # where the system does not say
LIMIT_S = 180
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
