"""What to type to mend something, right for a machine's Python, JetPack and driver. Pure functions of the facts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Dict, Optional

from gradseg.runtime.diagnosis.facts import Facts, Module, numbers

OK, NOTE, PROBLEM = "ok", "note", "problem"

# The oldest driver for each CUDA: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
MIN_DRIVER: Dict[int, int] = {11: 450, 12: 525, 13: 580}
OWN_ENVIRONMENT = "~/gradseg-env"
OLDEST_TENSORRT = (8, 5)  # its name-based I/O API
FLASH = "flash JetPack 5.1 or newer: https://developer.nvidia.com/embedded/jetpack"


@dataclass(frozen=True)
class Finding:
    """A row of the table. verdict: OK, NOTE or PROBLEM. why: one clause, "" if all is well. fix: one line to type.

    A problem always has a fix; a note may have one.
    """

    what: str
    found: str
    verdict: str = OK
    why: str = ""
    fix: str = ""


def pip(facts: Facts, *commands: str) -> str:
    """pip commands ("install NAME", "uninstall -y NAME") in one line, for the Python that the doctor runs under.

    Where that is the system's and may not be changed (Debian's EXTERNALLY-MANAGED), with an environment made first.
    """
    interpreter, first = shlex.quote(str(facts.python["executable"])), ""
    if facts.python["managed"] and not facts.python["venv"] and not facts.python["conda"]:
        interpreter = f"{OWN_ENVIRONMENT}/bin/python"
        first = f"python3 -m venv --system-site-packages {OWN_ENVIRONMENT} && "
    return first + " && ".join(f"{interpreter} -m pip {command}" for command in commands)


def install_opencv(facts: Facts) -> str:
    """JetPack's own build on a Jetson: the only one with GStreamer. pip's elsewhere."""
    return "sudo apt-get install -y nvidia-opencv" if facts.jetson else pip(facts, "install opencv-python-headless")


def of_numpy_1(module: Module) -> bool:
    """Whether an import fails the way binaries of NumPy 1 do under NumPy 2, and users of np.bool since 1.24."""
    signs = ("_ARRAY_API", "numpy.core.multiarray failed", "compiled using NumPy 1", "has no attribute 'bool'")
    return any(sign in module.error for sign in signs)


def numpy_for(facts: Facts) -> str:
    """The NumPy to ask pip for: one that JetPack's OpenCV and TensorRT, or what is installed, can load."""
    if facts.stack is not None and numbers(facts.stack.tensorrt) < (8, 6):
        return "'numpy<1.24'"  # NVIDIA/TensorRT issue 2557
    old = facts.jetson or any(of_numpy_1(facts.modules[name]) for name in ("cv2", "tensorrt", "pycuda"))
    return "'numpy<2'" if old else "numpy"


def beside_jetpack(facts: Facts, requirement: str) -> str:
    """A requirement that depends on NumPy; on a Jetson with NumPy held, since pip would take the newest with it."""
    return shlex.quote(requirement) + (f" {numpy_for(facts)}" if facts.jetson else "")


def install_native(facts: Facts) -> str:
    """The native engine's library: built in a clone with a compiler, else from the platform's wheel; "" without one."""
    clone, machine = facts.host.get("clone"), facts.host["machine"]
    if clone and facts.host.get("compiler"):
        return pip(facts, f"install -e {shlex.quote(clone)}")
    if facts.host["system"] != "Linux" or machine not in ("x86_64", "aarch64"):
        return ""
    wheel = f"gradseg-{facts.packages.get('gradseg', '*')}-py3-none-manylinux_2_17_{machine}.whl"
    return pip(facts, f"install --force-reinstall --no-deps {wheel}") + "  # from a clone's make wheels"


def install_cuda_python(facts: Facts) -> str:
    """The release for this Python and for the CUDA of the JetPack, else of the driver, else the newest."""
    major = next(iter(numbers(facts.driver_cuda)), 0)
    wanted = f"cuda-python>={major},<{major + 1}" if major else "cuda-python"
    if facts.stack is not None:
        wanted = facts.stack.cuda_python
    elif facts.python_version < (3, 9) and major >= 11:  # wheels for Python 3.8 end with these
        wanted = "cuda-python==11.8.2" if major == 11 else "cuda-python==12.3.0"
    return pip(facts, f"install {shlex.quote(wanted)}")


def install_tensorrt(facts: Facts) -> str:
    """On a Jetson from NVIDIA's apt repository (PyPI has none for it), elsewhere from PyPI by the driver's CUDA."""
    if facts.jetson:
        return "sudo apt-get install -y nvidia-jetpack"
    major = next(iter(numbers(facts.driver_cuda)), 13)
    if major <= 11:
        return newer_driver(facts, 12)
    return pip(facts, f"install tensorrt-cu{min(major, 13)}")


def newer_driver(facts: Facts, cuda: int) -> str:
    """How to come to a driver for that CUDA; on a Jetson the driver is part of JetPack."""
    least = MIN_DRIVER.get(cuda, max(MIN_DRIVER.values()))
    if facts.jetson:
        return f"flash a JetPack with CUDA {cuda}: https://developer.nvidia.com/embedded/jetpack"
    if facts.os_id == "ubuntu":
        return f"sudo ubuntu-drivers install && sudo reboot  # driver {least} or newer"
    return f"install NVIDIA's driver {least} or newer, then reboot: https://www.nvidia.com/drivers"


def see_system_packages(facts: Facts) -> str:
    """Lets an existing virtual environment see the system's packages."""
    config = facts.python.get("venv_config")
    if config:
        change = "s/^include-system-site-packages.*/include-system-site-packages = true/"
        return f"sed -i '{change}' {shlex.quote(config)}"
    return f"/usr/bin/python3 -m venv --system-site-packages {OWN_ENVIRONMENT}"


def inside(path: Optional[str]) -> bool:
    """Whether a module's file lies in pip's part of this Python (an environment or the user's packages)."""
    return path is not None and ("site-packages" in path or "/.local/" in path or "/usr/local/lib/python" in path)
