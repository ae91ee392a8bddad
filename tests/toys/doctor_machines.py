"""Recorded machines for the doctor: the files, commands and probes of Jetsons and PCs, healthy ones to start from.

The texts of /etc/nv_tegra_release, dpkg, nvpmodel, /proc/driver/nvidia/version and OpenCV's build information are those
that such machines print; addresses and serial numbers are left out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradseg.runtime.diagnosis.system import System

SITE = "/home/user/gradseg-env/lib/python{}/site-packages/"
VENV = {
    "version": "3.10.12",
    "executable": "/home/user/gradseg-env/bin/python",
    "venv": True,
    "venv_config": "/home/user/gradseg-env/pyvenv.cfg",
    "system_packages": True,
    "conda": False,
    "managed": False,
}
MISSING: dict[str, Any] = {"missing": True}


@dataclass
class Machine:
    """What a recorded System answers. closed: devices that this user may not open."""

    files: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    python: dict[str, Any] = field(default_factory=lambda: dict(VENV))
    host: dict[str, Any] = field(default_factory=dict)
    closed: tuple[str, ...] = ()

    def but(self, **changes: Any) -> Machine:
        """A copy with entries of its dictionaries replaced (None takes one away) and other fields set."""
        changed = copy.deepcopy(self)
        for name, value in changes.items():
            if isinstance(value, dict):
                merged = {**getattr(changed, name), **value}
                setattr(changed, name, {key: entry for key, entry in merged.items() if entry is not None})
            else:
                setattr(changed, name, value)
        return changed


class Recorded(System):
    """A System that answers from a Machine, its files laid out in a folder."""

    def __init__(self, machine: Machine, root: Path) -> None:
        super().__init__(root)
        self.machine = machine
        for path, text in machine.files.items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")

    def readable(self, path: str) -> bool:
        return path not in self.machine.closed

    def run(self, *command: str) -> str:
        return self.machine.commands.get(" ".join(command[:2]), "")

    def probe(self, name: str, argument: str | None = None) -> dict[str, Any]:
        return dict(self.machine.probes.get(name, MISSING))

    def python(self) -> dict[str, Any]:
        return self.machine.python

    def packages(self) -> dict[str, str]:
        return self.machine.packages

    def host(self) -> dict[str, Any]:
        return self.machine.host


def opencv_text(gstreamer: str, gui: str, ffmpeg: str = "YES") -> str:
    """The lines of `cv2.getBuildInformation` that are read, in their surroundings."""
    return f"""
General configuration for OpenCV 4.5.4 =====================================
  GUI:                           {gui}
    GTK+:                        YES (ver 2.24.32)

  Media I/O:
    ZLib:                        /usr/lib/aarch64-linux-gnu/libz.so (ver 1.2.11)

  Video I/O:
    FFMPEG:                      {ffmpeg}
      avcodec:                   YES (58.54.100)
    GStreamer:                   {gstreamer}
    v4l/v4l2:                    YES (linux/videodev2.h)
"""


def cv2_probe(version: str, file: str, gstreamer: str, gui: str) -> dict[str, Any]:
    return {"version": version, "file": file, "build": opencv_text(gstreamer, gui)}


def gpu(name: str, capability: str, driver: str, cuda: str, gib: float, integrated: bool) -> dict[str, Any]:
    """The fields of `gradseg.runtime.gpu.Gpu`."""
    return {
        "name": name,
        "compute_capability": capability,
        "driver": driver,
        "cuda": cuda,
        "memory_bytes": int(gib * (1 << 30)),
        "integrated": integrated,
        "multiprocessors": 8,
        "clock_khz": 0,
        "memory_clock_khz": 0,
        "memory_bus_bits": 0,
        "l2_bytes": 0,
    }


def driver_probe(name: str, capability: str, driver: str, cuda: str, gib: float, integrated: bool) -> dict[str, Any]:
    device = gpu(name, capability, driver, cuda, gib, integrated)
    return {"version": cuda, "init": "", "driver": driver, "gpu": device}


def nvinfer_probe(version: str) -> dict[str, Any]:
    entry = {"name": f"libnvinfer.so.{version.split('.')[0]}", "version": version}
    return {"version": version, "file": None, "libraries": [entry], "broken": []}


def cuda_probe(version: str) -> dict[str, Any]:
    return {"version": version, "file": "cudart.so", "devices": 1, "device_error": ""}


def ort_probe(version: str, *more: str) -> dict[str, Any]:
    return {"version": version, "file": "o", "providers": [*more, "CPUExecutionProvider"], "broken": {}}


def native_probe(isa: str) -> dict[str, Any]:
    return {"version": "2", "file": "_native.so", "isa": isa}


UBUNTU = 'PRETTY_NAME="Ubuntu {}"\nNAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n'
MEMINFO = "MemTotal:       {} kB\nMemFree:  100 kB\nMemAvailable:   {} kB\nSwapTotal:  0 kB\n"
DPKG = "dpkg-query -W"

JETPACK5 = Machine(
    files={
        "/etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, "
        "DATE: Tue Aug  1 19:57:35 UTC 2023\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "/etc/os-release": UBUNTU.format("20.04.6 LTS"),
        "/proc/meminfo": MEMINFO.format(31_000_000, 26_000_000),
        "/usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "11.4.19"}}',
        "/usr/local/cuda/lib64/libcudart.so.11.4.298": "",
        "/etc/nvpmodel.conf": "# MAXN is the NONE power model\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=1 NAME=MODE_15W >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n< POWER_MODEL ID=3 NAME=MODE_50W >\n",
        "/sys/class/devfreq/17000000.ga10b/min_freq": "1300500000\n",
        "/sys/class/devfreq/17000000.ga10b/max_freq": "1300500000\n",
        "/dev/video0": "",
        "/sys/class/video4linux/video0/name": "vi-output, imx219 9-0010\n",
    },
    commands={
        DPKG: "ii \tnvidia-jetpack\t5.1.2-b104\nii \tnvidia-l4t-core\t35.4.1-20230801124926\n"
        "ii \tlibnvinfer8\t8.5.2-1+cuda11.4\nii \tpython3-libnvinfer\t8.5.2-1+cuda11.4\n",
        "nvpmodel -q": "NV Power Mode: MAXN\n0",
        "systemctl is-active": "active",
    },
    probes={
        "numpy": {"version": "1.17.4", "file": "/usr/lib/python3/dist-packages/numpy/__init__.py"},
        "cv2": cv2_probe("4.5.4", "/usr/lib/python3.8/dist-packages/cv2/__init__.py", "YES (1.16.2)", "GTK2"),
        "tensorrt": {"version": "8.5.2.2", "file": "/usr/lib/python3.8/dist-packages/tensorrt", "library": "8.5.2"},
        "nvinfer": nvinfer_probe("8.5.2"),
        "driver": driver_probe("Orin", "sm87", "L4T 35.4.1", "11.4", 29.8, True),
        "cuda": cuda_probe("11.8.2"),
        "native": native_probe("neon-dotprod"),
    },
    packages={"cuda-python": "11.8.2", "gradseg": "0.1.0"},
    python={**VENV, "version": "3.8.10"},
    host={"machine": "aarch64", "system": "Linux", "cores": 12, "disk_free": 20 << 30},
)

JETPACK6 = JETPACK5.but(
    files={
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "/etc/os-release": UBUNTU.format("22.04.5 LTS"),
        "/proc/meminfo": MEMINFO.format(7_800_000, 5_000_000),
        "/usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.11"}}',
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release "
        "Build  (buildbrain@mobile-u64-6336-d8000)  Tue Jan  7 17:35:12 PST 2025\n",
        "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    },
    commands={
        DPKG: "ii \tnvidia-jetpack\t6.2+b77\nii \tnvidia-l4t-core\t36.4.3-20250107174145\n"
        "ii \tlibnvinfer10\t10.3.0.30-1+cuda12.5\nii \tpython3-libnvinfer\t10.3.0.30-1+cuda12.5\n",
        "nvpmodel -q": "NV Power Mode: MAXN_SUPER\n2",
    },
    probes={
        "numpy": {"version": "1.21.5", "file": "/usr/lib/python3/dist-packages/numpy/__init__.py"},
        "cv2": cv2_probe("4.8.0", "/usr/lib/python3.10/dist-packages/cv2/__init__.py", "YES (1.20.3)", "GTK2"),
        "tensorrt": {"version": "10.3.0", "file": "/usr/lib/python3.10/dist-packages/tensorrt", "library": "10.3.0"},
        "nvinfer": nvinfer_probe("10.3.0"),
        "driver": driver_probe("Orin", "sm87", "L4T 36.4.3", "12.6", 7.4, True),
        "cuda": cuda_probe("12.6.2.post1"),
    },
    packages={"cuda-python": "12.6.2.post1"},
    python=dict(VENV),
)

JETPACK7 = JETPACK6.but(
    files={
        "/etc/nv_tegra_release": "# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic, EABI: aarch64, "
        "DATE: Thu Sep 25 22:47:11 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "/etc/os-release": UBUNTU.format("24.04.3 LTS"),
        "/proc/meminfo": MEMINFO.format(128_000_000, 120_000_000),
        "/usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "13.0.0"}}',
        "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
    },
    commands={
        DPKG: "ii \tnvidia-jetpack\t7.0-b128\nii \tnvidia-l4t-core\t38.2.2-20250925153837\n"
        "ii \tlibnvinfer10\t10.13.3.9-1+cuda13.0\nii \tpython3-libnvinfer\t10.13.3.9-1+cuda13.0\n",
        "nvpmodel -q": "NV Power Mode: MAXN\n0",
    },
    probes={
        "numpy": {"version": "1.26.4", "file": "/usr/lib/python3/dist-packages/numpy/__init__.py"},
        "cv2": cv2_probe("4.8.0", "/usr/lib/python3.12/dist-packages/cv2/__init__.py", "YES (1.24.2)", "GTK3"),
        "tensorrt": {
            "version": "10.13.3.9",
            "file": "/usr/lib/python3.12/dist-packages/tensorrt",
            "library": "10.13.3",
        },
        "nvinfer": nvinfer_probe("10.13.3"),
        "driver": driver_probe("NVIDIA Thor", "sm110", "L4T 38.2.2", "13.0", 122.8, True),
        "cuda": cuda_probe("13.0.3"),
        "native": native_probe("neon-i8mm"),
    },
    packages={"cuda-python": "13.0.3"},
    python={**VENV, "version": "3.12.3"},
)

PC = Machine(
    files={
        "/etc/os-release": UBUNTU.format("22.04.5 LTS"),
        "/proc/meminfo": MEMINFO.format(32_000_000, 24_000_000),
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  "
        "Sat Aug 19 01:15:15 UTC 2023\n",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    },
    probes={
        "numpy": {"version": "2.2.6", "file": SITE.format("3.10") + "numpy/__init__.py"},
        "cv2": cv2_probe("4.12.0", SITE.format("3.10") + "cv2/__init__.py", "NO", "NONE"),
        "onnxruntime": ort_probe("1.23.2", "TensorrtExecutionProvider", "CUDAExecutionProvider"),
        "tensorrt": {"version": "10.3.0", "file": SITE.format("3.10") + "tensorrt/__init__.py", "library": "10.3.0"},
        "driver": driver_probe("NVIDIA GeForce RTX 3060", "sm86", "535.104.05", "12.2", 12.0, False),
        "cuda": cuda_probe("12.9.4"),
        "native": native_probe("avx2"),
        "torch": {"version": "2.7.1+cu126", "file": "t", "cuda": "12.6", "available": True},
    },
    packages={
        "numpy": "2.2.6",
        "opencv-python-headless": "4.12.0.88",
        "onnxruntime-gpu": "1.23.2",
        "tensorrt": "10.3.0",
        "tensorrt-cu12": "10.3.0",
        "tensorrt-cu12-libs": "10.3.0",
        "tensorrt-cu12-bindings": "10.3.0",
        "cuda-python": "12.9.4",
    },
    host={"machine": "x86_64", "system": "Linux", "cores": 16, "disk_free": 200 << 30},
)

HEALTHY = {"JetPack 5": JETPACK5, "JetPack 6": JETPACK6, "JetPack 7": JETPACK7, "PC": PC}
