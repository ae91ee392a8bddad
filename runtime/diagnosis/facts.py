"""What there is on a machine, as one value: gathered by `gather`, judged by the checks, written to JSON as it is."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from gradseg.runtime.diagnosis.jetpack import Stack, l4t_of, stack_of
from gradseg.runtime.diagnosis.probes import PROBES
from gradseg.runtime.diagnosis.system import System

DEBIAN = ("nvidia-jetpack", "nvidia-l4t-core", "libnvinfer[0-9]*", "python3-libnvinfer", "libopencv-python")
PARALLEL = 2  # probes at once: imports are bound by the disk


@dataclass(frozen=True)
class Module:
    """What a probe found. error: "" or why it cannot be used. extra: what only this module has."""

    name: str
    missing: bool = False
    error: str = ""
    version: Optional[str] = None
    file: Optional[str] = None
    extra: Dict[str, Any] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        return not self.missing and not self.error


@dataclass(frozen=True)
class Camera:
    """device: "/dev/video0". readable: by this user."""

    device: str
    name: str
    readable: bool


@dataclass(frozen=True)
class Power:
    """mode, mode_id: nvpmodel's. best, best_id: its mode with the fewest limits. governor: of the first CPU core.

    pinned: whether the GPU's (on a PC the CPU's) lowest allowed clock is its highest; None if that cannot be seen.
    """

    mode: Optional[str] = None
    mode_id: Optional[int] = None
    best: Optional[str] = None
    best_id: Optional[int] = None
    governor: Optional[str] = None
    pinned: Optional[bool] = None


@dataclass(frozen=True)
class Facts:
    """A machine. python, host: see `System`. debian: versions of installed packages. memory: bytes.

    cuda_toolkit: "12.6.11" or None. cuda_runtimes: the libcudart.so files' versions. argus: nvargus-daemon's state as
    systemd names it, None without systemd.
    """

    python: Dict[str, Any]
    host: Dict[str, Any]
    os_name: str
    os_id: str
    container: bool
    l4t: Optional[str]
    board: Optional[str]
    debian: Dict[str, str]
    packages: Dict[str, str]
    modules: Dict[str, Module]
    cuda_toolkit: Optional[str]
    cuda_runtimes: Tuple[str, ...]
    kernel_driver: Optional[str]
    power: Power
    memory_total: Optional[int]
    memory_free: Optional[int]
    cameras: Tuple[Camera, ...]
    argus: Optional[str]

    @property
    def jetson(self) -> bool:
        return self.l4t is not None

    @property
    def stack(self) -> Optional[Stack]:
        """What this Jetson's JetPack installs; None off a Jetson and for an unknown series."""
        return stack_of(self.l4t) if self.l4t else None

    @property
    def gpu(self) -> Optional[Dict[str, Any]]:
        """The fields of `gradseg.runtime.gpu.Gpu`, or None."""
        found = self.modules["driver"].extra.get("gpu")
        return found if isinstance(found, dict) else None

    @property
    def driver_cuda(self) -> Optional[str]:
        """The newest CUDA that the driver supports, "12.2"; None without a driver."""
        return self.modules["driver"].version

    @property
    def python_version(self) -> Tuple[int, ...]:
        return numbers(self.python["version"])


def numbers(version: Optional[str]) -> Tuple[int, ...]:
    """ "8.5.2-1+cuda11.4" → (8, 5, 2); "2.13.0+cpu" → (2, 13, 0); None → ()."""
    match = re.match(r"v?\d+(?:\.\d+)*", version or "")
    return tuple(int(part) for part in match.group(0).lstrip("v").split(".")) if match else ()


def gather(system: System) -> Facts:
    """Asks everything. Takes as long as the slowest imports; never raises for what is broken."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        asked = {name: pool.submit(system.probe, name) for name in PROBES}
        debian = _debian(system)
        release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', system.text("/etc/os-release")))
        kib = re.findall(r"(?m)^(\w+):\s+(\d+) kB", system.text("/proc/meminfo"))
        memory = {key: int(count) * 1024 for key, count in kib}
        l4t = l4t_of(system.text("/etc/nv_tegra_release"), debian.get("nvidia-l4t-core"))
        return Facts(
            python=system.python(),
            host=system.host(),
            os_name=release.get("PRETTY_NAME", system.host()["system"]),
            os_id=release.get("ID", ""),
            container=bool(system.paths("/.dockerenv") or system.paths("/run/.containerenv")),
            l4t=l4t,
            board=system.text("/proc/device-tree/model") or None,
            debian=debian,
            packages=system.packages(),
            cuda_toolkit=_toolkit(system),
            cuda_runtimes=_runtimes(system),
            kernel_driver=_kernel_driver(system),
            power=_power(system, l4t is not None),
            memory_total=memory.get("MemTotal"),
            memory_free=memory.get("MemAvailable"),
            cameras=_cameras(system),
            argus=system.run("systemctl", "is-active", "nvargus-daemon") or None,
            modules={name: _module(name, answer.result()) for name, answer in asked.items()},
        )


def _module(name: str, answer: Dict[str, Any]) -> Module:
    known = {key: answer[key] for key in ("missing", "error", "version", "file") if key in answer}
    extra = {key: value for key, value in answer.items() if key not in known}
    if "build" in extra:
        extra["build"] = opencv_build(extra["build"])
    return Module(name, **known, extra=extra)


def opencv_build(text: str) -> Dict[str, str]:
    """What `cv2.getBuildInformation` says of GStreamer, FFMPEG and GUI: "YES (1.16.2)", "NO", "GTK2", "NONE", or ""."""
    found = dict(reversed(re.findall(r"(?m)^ +(GStreamer|FFMPEG|GUI): +(\S.*?) *$", text)))
    return {name: found.get(name, "") for name in ("GStreamer", "FFMPEG", "GUI")}


def _debian(system: System) -> Dict[str, str]:
    """Versions of installed packages; dpkg-query says nothing of those that are not there."""
    lines = system.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n", *DEBIAN)
    rows = [line.split("\t") for line in lines.splitlines()]
    return {row[1]: row[2] for row in rows if len(row) == 3 and row[0].startswith("ii")}


def _toolkit(system: System) -> Optional[str]:
    """From version.json ({"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}), or version.txt before CUDA 11.1."""
    try:
        return str(json.loads(system.text("/usr/local/cuda/version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        match = re.search(r"CUDA Version (\d[\d.]*)", system.text("/usr/local/cuda/version.txt"))
        return match.group(1) if match else None


def _runtimes(system: System) -> Tuple[str, ...]:
    places = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib", "/usr/lib/*-linux-gnu")
    found = {path for place in places for path in system.paths(f"{place}/libcudart.so.*.*")}
    return tuple(sorted({path.partition("libcudart.so.")[2] for path in found}))


def _kernel_driver(system: System) -> Optional[str]:
    """From "… NVIDIA UNIX x86_64 Kernel Module  535.104.05  …" or "… Open Kernel Module for aarch64  540.4.0  …"."""
    match = re.search(r"Kernel Module(?: for \S+)?\s+(\d{3}\.\d[\d.]*)", system.text("/proc/driver/nvidia/version"))
    return match.group(1) if match else None


def _power(system: System, jetson: bool) -> Power:
    governor = system.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None
    if not jetson:
        return Power(governor=governor)
    listed = re.findall(r"(?m)^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", system.text("/etc/nvpmodel.conf"))
    modes = {int(number): name for number, name in listed}
    said = re.search(r"NV Power Mode: *(\S+)\s+(\d+)", system.run("nvpmodel", "-q"))
    status = re.search(r"pmode:(\d+)", system.text("/var/lib/nvpmodel/status"))  # where nvpmodel itself wants root
    mode_id = int(said.group(2)) if said else int(status.group(1)) if status else None
    mode = said.group(1) if said else modes.get(mode_id) if mode_id is not None else None
    best_id = max(modes, key=lambda number: _freedom(modes[number]), default=None)
    best = None if best_id is None else modes[best_id]
    return Power(mode, mode_id, best, best_id, governor, _pinned(system))


def _freedom(mode: str) -> Tuple[int, int]:
    """Orders power modes by how little they hold back: MAXN_SUPER, MAXN, then by watts ("MODE_30W", "25W")."""
    watts = re.search(r"(\d+)W", mode)
    return (2 if "MAXN_SUPER" in mode else 1 if "MAXN" in mode else 0, int(watts.group(1)) if watts else 0)


def _pinned(system: System) -> Optional[bool]:
    """Whether jetson_clocks holds the GPU's clock: its devfreq limits, which need no root to read, are then equal.

    The GPU's node is named by its address: 17000000.ga10b, 17000000.gpu, 17000000.gv11b.
    """
    for low in system.paths("/sys/class/devfreq/*.g*/min_freq"):
        lowest, highest = system.text(low), system.text(low.replace("min_freq", "max_freq"))
        if lowest and highest:
            return lowest == highest
    return None


def _cameras(system: System) -> Tuple[Camera, ...]:
    devices = [path for path in system.paths("/dev/video*") if re.search(r"video\d+$", path)]
    names = [system.text(f"/sys/class/video4linux/{path.rpartition('/')[2]}/name") for path in devices]
    return tuple(Camera(path, name or "camera", system.readable(path)) for path, name in zip(devices, names))
