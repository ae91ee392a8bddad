"""What a CPU's INT8 instructions mean for quantisation. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Set


def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> Set[str]:
    """What the cores can do, in Linux's words; empty elsewhere."""
    try:
        lines = Path(cpuinfo).read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    pairs = (line.partition(":") for line in lines)
    return {flag for key, _, value in pairs if key.strip() in ("flags", "Features") for flag in value.split()}


def int8_saturates(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether uint8 x int8 products may saturate here, so that weights should keep to 7 bits.

    x86 with AVX2 or AVX-512 but without VNNI adds two such products in int16 (VPMADDUBSW): 2 * 255 * 127 does not fit,
    2 * 255 * 63 does. False where there is no such file (systems other than Linux) and on other architectures.
    """
    flags = cpu_flags(cpuinfo)
    wide = any(flag == "avx2" or flag.startswith("avx512") for flag in flags)
    return wide and not any(flag.endswith("vnni") for flag in flags)
