"""What each JetPack brings, found by its Jetson Linux (L4T) release. Standard library only.

Sources: NVIDIA's JetPack archive and release notes (developer.nvidia.com/embedded/jetpack-archive, …/jetpack-sdk-502,
…/jetpack-sdk-511, …/jetpack-sdk-514, …/jetpack/downloads/archive-7.0.md, …/archive-7.1.md), the packages of NVIDIA's
apt repository (repo.download.nvidia.com/jetson/common: libnvinfer8 8.5.2-1+cuda11.4, libnvinfer8 8.6.2.3-1+cuda12.2,
libnvinfer10 10.3.0.30-1+cuda12.5, libnvinfer10 10.16.2.10-1+cuda13.2), and two projects that keep the same table:
rbonghi/jetson_stats jtop/core/jetson_variables.py and dusty-nv/jetson-containers jetson_containers/l4t_version.py.
Python is the one of the Ubuntu release.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

RELEASES: Dict[str, str] = {  # L4T → JetPack
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}


@dataclass(frozen=True)
class Stack:
    """What a JetPack installs. since: the first L4T release that has it. tensorrt, cuda: versions, as precise as known.

    cuda_python: what to give pip, a release with wheels for that Python on aarch64 and for that CUDA (PyPI's file
    lists: 11.8.2 is the last with wheels for Python 3.8 below CUDA 12; 12.6.2.post1 the last 12.x in one wheel).
    """

    since: Tuple[int, int]
    jetpack: str
    ubuntu: str
    python: str
    cuda: str
    tensorrt: str
    cuda_python: str


STACKS: Tuple[Stack, ...] = (
    Stack((35, 1), "5.0", "20.04", "3.8", "11.4", "8.4.1", "cuda-python==11.8.2"),
    Stack((35, 2), "5.1", "20.04", "3.8", "11.4", "8.5.2", "cuda-python==11.8.2"),
    Stack((36, 3), "6.0", "22.04", "3.10", "12.2", "8.6.2", "cuda-python==12.6.2.post1"),
    Stack((36, 4), "6.1 and 6.2", "22.04", "3.10", "12.6", "10.3", "cuda-python==12.6.2.post1"),
    Stack((38, 2), "7.0 and 7.1", "24.04", "3.12", "13.0", "10.13.3", "cuda-python>=13,<14"),
    Stack((39, 2), "7.2", "24.04", "3.12", "13.2", "10.16.2", "cuda-python>=13,<14"),
)


def l4t_of(release: Optional[str], package: Optional[str]) -> Optional[str]:
    """The L4T release, "35.4.1"; None off a Jetson.

    Args:
        release: text of /etc/nv_tegra_release ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, …").
        package: version of nvidia-l4t-core ("36.4.3-20250107174145"), which images without that file have.
    """
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", release or "")
    if match:
        return f"{match.group(1)}.{match.group(2)}"
    match = re.match(r"\d+\.\d+(?:\.\d+)?", package or "")
    return match.group(0) if match else None


def jetpack_of(l4t: str) -> str:
    """ "35.4.1" → "5.1.2"; of a release that the table does not know, its series ("6.x") or "unknown"."""
    known = RELEASES.get(l4t) or RELEASES.get(f"{l4t}.0")
    if known is not None:
        return known
    series = {"32": "4.x", "34": "5.0 preview", "35": "5.x", "36": "6.x", "38": "7.x", "39": "7.x"}
    return series.get(l4t.partition(".")[0], "unknown")


def stack_of(l4t: str) -> Optional[Stack]:
    """What the JetPack of an L4T release installs; of a newer release, what the newest known one of its series did.

    None for a series that is not known.
    """
    parts = [int(part) for part in re.findall(r"\d+", l4t)[:2]]
    if len(parts) < 2:
        return None
    same = [stack for stack in STACKS if stack.since[0] == parts[0] and stack.since <= (parts[0], parts[1])]
    return same[-1] if same else None
