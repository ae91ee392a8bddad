"""Layers against a machine's ceilings: what arithmetic and memory allow each of them, and the time lost to that.

The model is Williams, Waterman and Patterson's roofline (CACM 2009), with multiply-accumulates in place of FLOPs: a
layer of intensity I (multiply-accumulates per byte) can do at most min(peak, I x bandwidth) of them per second. Its
floor is the time that this takes; of a layer that only moves bytes, the time that they take.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

KINDS = ("fp32", "bf16", "int8")
LEVELS = ("L2", "L3", "DRAM")
TOLERANCE = 1.05  # of a ceiling, for the noise of a layer's time


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
