"""The doctor's judgement of what plans need: driver, GPU, TensorRT's module against its library, CUDA, cuda-python.

Each check is a pure function of the facts.
"""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

from gradseg.runtime.diagnosis.facts import Facts, numbers
from gradseg.runtime.diagnosis.fixes import (
    FLASH,
    NOTE,
    OK,
    OLDEST_TENSORRT,
    PROBLEM,
    Finding,
    install_cuda_python,
    install_tensorrt,
    newer_driver,
    pip,
    see_system_packages,
)

PIP_TENSORRT = ("tensorrt", "tensorrt-libs", "tensorrt-bindings")


def check_driver(facts: Facts) -> List[Finding]:
    """Whether there is a driver and whether it starts; then the GPU."""
    module = facts.modules["driver"]
    if module.missing:
        if facts.jetson:
            why = "libcuda.so.1, a part of Jetson Linux, is not found"
            where = "run the container with --runtime nvidia" if facts.container else ""
            fix = where or "sudo apt-get install -y --reinstall nvidia-l4t-cuda && sudo ldconfig"
            return [Finding("NVIDIA driver", "none", PROBLEM, why, fix)]
        if facts.kernel_driver is not None:
            why = "its kernel module is loaded, but libcuda.so.1 is not found"
            fix = "run the container with --gpus all" if facts.container else newer_driver(facts, 13)
            return [Finding("NVIDIA driver", facts.kernel_driver, PROBLEM, why, fix)]
        why = "plans, and --provider cuda and tensorrt, need an NVIDIA GPU with its driver"
        return [Finding("NVIDIA driver", "none", NOTE, why)]
    if not module.works:
        return [Finding("NVIDIA driver", module.error, PROBLEM, "it cannot be loaded", newer_driver(facts, 13))]
    driver = module.extra.get("driver") or facts.kernel_driver or "version unknown"
    found, failed = f"{driver}, for CUDA up to {module.version}", module.extra.get("init")
    if failed:
        return [Finding("NVIDIA driver", found, PROBLEM, f"it answers {failed}", _driver_fix(facts, failed))]
    if facts.gpu is None:
        return [Finding("NVIDIA driver", found, PROBLEM, "it finds no GPU", _driver_fix(facts, "CUDA_ERROR_NO_DEVICE"))]
    memory = f"{facts.gpu['memory_bytes'] / float(1 << 30):.1f} GiB"
    shared = "shared with the CPU" if facts.gpu["integrated"] else "its own"
    gpu = f"{facts.gpu['name']}, {facts.gpu['compute_capability']}, {memory} ({shared})"
    return [Finding("NVIDIA driver", found), Finding("GPU", gpu)]


def _driver_fix(facts: Facts, failed: str) -> str:
    if facts.container:
        return "run the container with " + ("--runtime nvidia" if facts.jetson else "--gpus all")
    if "MISMATCH" in failed or "STUB" in failed:  # library and kernel module of two versions, until the next start
        return "sudo reboot"
    if "NO_DEVICE" in failed:
        return "echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L; sudo dmesg | grep -iE 'nvrm|nvgpu' | tail"
    return "sudo modprobe nvidia_uvm || sudo reboot"


def check_tensorrt(facts: Facts) -> List[Finding]:
    """TensorRT's Python module against the library that it loads, and TensorRT for RTX."""
    module, library, rtx = (facts.modules[name] for name in ("tensorrt", "nvinfer", "tensorrt_rtx"))
    findings = [_tensorrt_row(facts)]
    packages = sorted({v for k, v in facts.debian.items() if re.fullmatch(r"libnvinfer\d+", k)})
    found = ", ".join(f"{entry['name']}: {entry['version']}" for entry in library.extra.get("libraries", []))
    if found:
        findings.append(Finding("TensorRT library", found))
    elif packages:
        why = f"libnvinfer {packages[0]} is installed, but cannot be loaded"
        if library.extra.get("broken"):
            why += f" ({library.extra['broken'][0]})"
        again = " && sudo apt-get install -y --reinstall nvidia-jetpack" if facts.jetson else ""
        findings.append(Finding("TensorRT library", packages[0], PROBLEM, why, f"sudo ldconfig{again}"))
    if rtx.works:
        findings.append(Finding("TensorRT for RTX", str(rtx.version)))
    elif rtx.error:
        fix = pip(facts, "install --force-reinstall tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings")
        findings.append(Finding("TensorRT for RTX", rtx.error, NOTE, "it cannot be imported", fix))
    if module.missing and rtx.works and not facts.jetson:
        findings[0] = Finding("TensorRT", "none", OK, "TensorRT for RTX is there")
    return findings


def _tensorrt_row(facts: Facts) -> Finding:
    module, what = facts.modules["tensorrt"], "TensorRT"
    mixed = _module_and_library(facts)
    own = [name for name in facts.packages if name in PIP_TENSORRT or re.match(r"tensorrt-cu\d+", name)]
    if facts.jetson and own and facts.stack is not None and facts.stack.since < (38, 0):
        # https://github.com/NVIDIA/TensorRT/issues/4176: PyPI's aarch64 files are for servers, not for Tegra
        why = f"pip's {own[0]} {facts.packages[own[0]]} is not made for this Jetson and hides JetPack's"
        found = f"{module.version or facts.packages[own[0]]} from pip"
        return Finding(what, found, PROBLEM, why, pip(facts, f"uninstall -y {' '.join(own)}"))
    if mixed is not None:
        python, loaded = mixed
        why = f"its Python module is {python}, the library that is there {loaded}: they must be the same"
        fix = _same_tensorrt(facts, own, python, loaded)
        return Finding(what, f"module {python}, library {loaded}", PROBLEM, why, fix)
    if module.missing:
        return _no_tensorrt(facts)
    if not module.works:
        fix = install_tensorrt(facts) if not own else pip(facts, f"install --force-reinstall {' '.join(own)}")
        return Finding(what, module.error, PROBLEM, "its Python module cannot be imported", fix)
    found = f"{module.version}" + (f" (library {module.extra['library']})" if module.extra.get("library") else "")
    if numbers(module.version) < OLDEST_TENSORRT:
        fix = FLASH if facts.jetson else install_tensorrt(facts)
        return Finding(what, found, PROBLEM, "8.5 or newer is needed", fix)
    need, have = cuda_of_tensorrt(facts), numbers(facts.driver_cuda)
    if need is not None and have and have[0] < need:
        why = f"it is built for CUDA {need}, the driver supports CUDA {facts.driver_cuda} at most"
        return Finding(what, found, PROBLEM, why, newer_driver(facts, need))
    return Finding(what, found)


def _module_and_library(facts: Facts) -> Optional[Tuple[str, str]]:
    """(version of the Python module, of the library), if they are not of one release; None if they are, or unknown.

    The module says its version if it loads; where it does not for want of its library, pip or dpkg say it.
    """
    module, library = facts.modules["tensorrt"], facts.modules["nvinfer"]
    loaded = module.extra.get("library") if module.works else library.version
    python = module.version if module.works else None
    if python is None and "libnvinfer" in module.error:
        python = next((facts.packages[name] for name in PIP_TENSORRT if name in facts.packages), None)
        python = python or facts.debian.get("python3-libnvinfer")
    if not python or not loaded or numbers(python)[:3] == numbers(loaded)[:3]:
        return None
    return python, loaded


def _same_tensorrt(facts: Facts, own: List[str], python: str, loaded: str) -> str:
    """pip's packages bring their own library: so either it is missing, or LD_LIBRARY_PATH puts another before it."""
    if own and facts.modules["tensorrt"].works:
        return "unset LD_LIBRARY_PATH  # it leads to another TensorRT than pip's"
    if own:
        whole = next((name for name in own if re.fullmatch(r"tensorrt(-cu\d+)?", name)), "tensorrt")
        return pip(facts, f"install --force-reinstall {whole}=={python}")
    library = f"libnvinfer{numbers(loaded)[0]}"
    return f"sudo apt-get install -y \"python3-libnvinfer=$(dpkg-query -W -f '${{Version}}' {library})\""


def _no_tensorrt(facts: Facts) -> Finding:
    what, python = "TensorRT", facts.python
    hidden = python["venv"] and python["system_packages"] is False
    if hidden and (facts.jetson or facts.debian.get("python3-libnvinfer")):
        why = "the system has it, but this environment does not see the system's packages"
        return Finding(what, "none", PROBLEM, why, see_system_packages(facts))
    if facts.jetson:
        library = facts.modules["nvinfer"].version
        fix = "sudo apt-get install -y python3-libnvinfer" if library else install_tensorrt(facts)
        return Finding(what, "none", PROBLEM, "plans cannot be built or run without its Python module", fix)
    why = "plans cannot be built or run without it"
    return Finding(what, "none", NOTE, why, install_tensorrt(facts) if facts.gpu is not None else "")


def cuda_of_tensorrt(facts: Facts) -> Optional[int]:
    """The CUDA major version that the TensorRT here was built for, by its packages; None if they do not say."""
    said = re.findall(r"(?m)^tensorrt-cu(\d+)", "\n".join(facts.packages))  # tensorrt-cu12, tensorrt-cu12-libs
    if said:
        return int(said[0])
    if "tensorrt" in facts.packages:  # before the packages said it: 8.5 was built for 11, 8.6 for 12
        version = numbers(facts.packages["tensorrt"])
        return 11 if version < (8, 6) else 12 if version < (10,) else None
    versions = [version for name, version in sorted(facts.debian.items()) if name.startswith("libnvinfer")]
    match = re.search(r"\+cuda(\d+)", " ".join(versions))  # libnvinfer10 10.3.0.30-1+cuda12.5
    return int(match.group(1)) if match else None


def check_cuda(facts: Facts) -> List[Finding]:
    """Toolkit and runtime libraries: nothing of ours needs them, ONNX Runtime's CUDA provider does."""
    parts = [f"toolkit {facts.cuda_toolkit}"] if facts.cuda_toolkit else []
    parts += [f"runtime {', '.join(facts.cuda_runtimes)}"] if facts.cuda_runtimes else []
    if not parts and facts.gpu is None:
        return []
    toolkit, driver = numbers(facts.cuda_toolkit), numbers(facts.driver_cuda)
    if toolkit and driver and toolkit[0] > driver[0]:
        why = f"the driver supports CUDA {facts.driver_cuda} at most"
        return [Finding("CUDA", ", ".join(parts), NOTE, why, newer_driver(facts, toolkit[0]))]
    return [Finding("CUDA", ", ".join(parts) or "no toolkit", OK, "" if parts else "plans do not need one")]


def check_cuda_python(facts: Facts) -> List[Finding]:
    """cuda-python, of the driver's CUDA or an older one; pycuda does as well, but without CUDA graphs."""
    module, pycuda = facts.modules["cuda"], facts.modules["pycuda"]
    needed, fix = facts.gpu is not None or facts.jetson, install_cuda_python(facts)
    have, driver = numbers(module.version), numbers(facts.driver_cuda)
    error = module.extra.get("device_error") if facts.gpu is not None else ""
    found = module.error or ("none" if module.missing else module.version or "there")
    if module.works and have and driver and have[0] > driver[0]:
        verdict, why = PROBLEM, f"it is for CUDA {have[0]}, the driver supports CUDA {facts.driver_cuda} at most"
    elif module.works:
        verdict, why = (PROBLEM, f"it finds no GPU ({error})") if error else (OK, "")
    elif module.error:
        verdict, why = PROBLEM if needed and not pycuda.works else NOTE, "it cannot be imported"
    elif pycuda.works:
        verdict, why = NOTE, "pycuda does as well, but CUDA graphs need cuda-python"
    else:
        verdict, why = (PROBLEM, "a plan cannot be run without cuda-python or pycuda") if needed else (OK, "")
    findings = [Finding("cuda-python", found, verdict, why, fix if why else "")]
    if pycuda.works:
        findings.append(Finding("pycuda", f"{pycuda.version} (for CUDA {pycuda.extra.get('cuda', '?')})"))
    elif pycuda.error:
        findings.append(Finding("pycuda", pycuda.error, NOTE, "it cannot be imported", "" if module.works else fix))
    return findings
