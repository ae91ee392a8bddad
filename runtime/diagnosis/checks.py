"""The doctor's judgement of what every engine needs: board, Python, NumPy, OpenCV, ONNX Runtime, PyTorch; and of
cameras and power.

Each check is a pure function of the facts. What only the GPU needs is in doctor_gpu_checks.
"""

from __future__ import annotations

from typing import List

from gradseg.runtime.diagnosis.facts import Facts, Module, numbers
from gradseg.runtime.diagnosis.fixes import (
    FLASH,
    NOTE,
    OK,
    OLDEST_TENSORRT,
    PROBLEM,
    Finding,
    beside_jetpack,
    inside,
    install_native,
    install_opencv,
    numpy_for,
    of_numpy_1,
    pip,
    see_system_packages,
)
from gradseg.runtime.diagnosis.jetpack import jetpack_of

OPENCV_PACKAGES = tuple(f"opencv-{which}python{kind}" for which in ("", "contrib-") for kind in ("", "-headless"))
OLDEST_PYTHON, OLDEST_NUMPY, OLDEST_OPENCV, OLDEST_ORT = (3, 8), (1, 17), (4, 2), (1, 14)
OLDEST_OPENVINO = (2024,)
FUSES_FLOAT_BIASES = (1, 20)  # README: 1.19 runs our INT8 graphs slower than FP32
NUMPY_WITHOUT_BOOL = (1, 24)  # https://github.com/NVIDIA/TensorRT/issues/2557
LITTLE_DISK, LITTLE_MEMORY = 2 << 30, 1 << 30  # bytes


def check_board(facts: Facts) -> List[Finding]:
    """Board, JetPack and L4T; what is older than TensorRT 8.5 is a problem for plans."""
    if not facts.jetson:
        where = f"{facts.os_name}, {facts.host['machine']}" + (", in a container" if facts.container else "")
        return [Finding("machine", f"{facts.board}, {where}" if facts.board else where)]
    l4t = str(facts.l4t)
    jetpack = jetpack_of(l4t)
    found = f"JetPack {jetpack} (Jetson Linux {l4t}), {facts.os_name}"
    findings = [Finding("board", facts.board or "Jetson")]
    stack = facts.stack
    if stack is None:
        why = "not in the doctor's table (JetPack 5.0 to 7.2): what belongs together on it is not known here"
        return [*findings, Finding("JetPack", found, NOTE, why)]
    if numbers(stack.tensorrt) < OLDEST_TENSORRT:
        why = f"it has TensorRT {stack.tensorrt}; plans need 8.5 or newer"
        return [*findings, Finding("JetPack", found, PROBLEM, why, FLASH)]
    package = facts.debian.get("nvidia-jetpack")
    if package is None and not (facts.modules["tensorrt"].works or facts.modules["nvinfer"].works):
        brings = f"CUDA {stack.cuda} and TensorRT {stack.tensorrt}"
        why = f"Jetson Linux alone: {brings} come with the package nvidia-jetpack"
        fix = "sudo apt-get update && sudo apt-get install -y nvidia-jetpack"
        return [*findings, Finding("JetPack", found, NOTE, why, fix)]
    if package and jetpack[0].isdigit() and numbers(package)[:1] != numbers(jetpack)[:1]:
        why = f"the package nvidia-jetpack is {package}: another JetPack's than this Jetson Linux"
        fix = f"point /etc/apt/sources.list.d/nvidia-l4t-apt-source.list to r{'.'.join(l4t.split('.')[:2])}, then: "
        fix += "sudo apt-get update && sudo apt-get install -y nvidia-jetpack"
        return [*findings, Finding("JetPack", found, PROBLEM, why, fix)]
    return [*findings, Finding("JetPack", found)]


def check_python(facts: Facts) -> List[Finding]:
    """Version, and on a Jetson whether this Python can see what JetPack installed for the system's Python."""
    python, stack = facts.python, facts.stack
    kind = "conda" if python["conda"] else "virtual environment" if python["venv"] else "the system's"
    found = f"{python['version']} ({kind}, {python['executable']})"
    if facts.python_version < OLDEST_PYTHON:
        return [Finding("Python", found, PROBLEM, "3.8 or newer is needed", "install Python 3.8 or newer")]
    if stack is not None and ".".join(map(str, facts.python_version[:2])) != stack.python:
        why = f"JetPack's TensorRT and OpenCV are for its Python {stack.python} only"
        fix = "/usr/bin/python3 -m venv --system-site-packages ~/gradseg-env && . ~/gradseg-env/bin/activate"
        return [Finding("Python", found, PROBLEM, why, fix)]
    if facts.jetson and python["venv"] and python["system_packages"] is False:
        why = "the environment does not see JetPack's TensorRT and OpenCV (made without --system-site-packages)"
        return [Finding("Python", found, PROBLEM, why, see_system_packages(facts))]
    return [Finding("Python", found)]


def check_numpy(facts: Facts) -> List[Finding]:
    """Version, and the two NumPy borders that break older binaries: 1.24 (no np.bool) and 2 (another ABI)."""
    module = facts.modules["numpy"]
    if not module.works:
        return [_cannot_import("NumPy", module, pip(facts, f"install --force-reinstall {numpy_for(facts)}"))]
    found, have = str(module.version), numbers(module.version)
    if have < OLDEST_NUMPY:
        fix = pip(facts, f"install -U {numpy_for(facts)}")
        return [Finding("NumPy", found, PROBLEM, "1.17 or newer is needed", fix)]
    built_before = [name for name in ("cv2", "tensorrt", "pycuda") if of_numpy_1(facts.modules[name])]
    if have >= (2,) and built_before:
        why = f"built for NumPy 1 and not to be loaded with NumPy 2: {', '.join(built_before)}"
        return [Finding("NumPy", found, PROBLEM, why, pip(facts, f"install {numpy_for(facts)}"))]
    tensorrt = facts.modules["tensorrt"]
    if have >= NUMPY_WITHOUT_BOOL and tensorrt.works and numbers(tensorrt.version) < (8, 6):
        why = f"TensorRT {tensorrt.version}'s own nptype() needs NumPy before 1.24; GradSeg does without it"
        return [Finding("NumPy", found, NOTE, why, pip(facts, "install 'numpy<1.24'"))]
    return [Finding("NumPy", found)]


def check_opencv(facts: Facts) -> List[Finding]:
    """One OpenCV, importable, with FFMPEG; on a Jetson JetPack's, which alone has GStreamer."""
    module = facts.modules["cv2"]
    clash = [name for name in OPENCV_PACKAGES if name in facts.packages]
    if not module.works:
        if of_numpy_1(module):
            why = "it was built for NumPy 1"
            return [Finding("OpenCV", module.error, PROBLEM, why, pip(facts, f"install {numpy_for(facts)}"))]
        return [_cannot_import("OpenCV", module, install_opencv(facts))]
    build = module.extra.get("build", {})
    has = ", ".join(f"{name} {build.get(name) or '?'}" for name in ("GStreamer", "FFMPEG", "GUI"))
    found = f"{module.version} ({has})"
    if len(clash) > 1:
        why = f"{' and '.join(clash)} overwrite each other's files"
        keep = "opencv-python" if "opencv-python" in clash else clash[0]
        fix = pip(facts, f"uninstall -y {' '.join(clash)}", *([] if facts.jetson else [f"install {keep}"]))
        return [Finding("OpenCV", found, PROBLEM, why, fix)]
    if facts.jetson and not build.get("GStreamer", "").startswith("YES"):
        why = "without GStreamer csi:// cannot be read; JetPack's OpenCV has it"
        if clash and inside(module.file):
            why = f"pip's {clash[0]} hides JetPack's OpenCV, so that csi:// cannot be read"
            return [Finding("OpenCV", found, PROBLEM, why, pip(facts, f"uninstall -y {clash[0]}"))]
        return [Finding("OpenCV", found, PROBLEM, why, install_opencv(facts))]
    if build.get("FFMPEG") == "NO" and not build.get("GStreamer", "").startswith("YES"):
        return [Finding("OpenCV", found, PROBLEM, "it can neither read nor write videos", install_opencv(facts))]
    if numbers(module.version) < OLDEST_OPENCV:
        return [Finding("OpenCV", found, NOTE, "tried with 4.5 and newer only", install_opencv(facts))]
    return [Finding("OpenCV", found, OK, "" if build.get("GUI") != "NONE" else "--show needs an OpenCV with a window")]


def check_onnxruntime(facts: Facts) -> List[Finding]:
    """Version, providers that can be loaded, and the two packages that overwrite each other."""
    module = facts.modules["onnxruntime"]
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if name in facts.packages]
    keep = "onnxruntime-gpu" if facts.gpu is not None and not facts.jetson else "onnxruntime"
    if len(both) > 1:
        why = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
        found = f"{facts.packages['onnxruntime']} and {facts.packages['onnxruntime-gpu']}"
        fix = pip(facts, "uninstall -y onnxruntime onnxruntime-gpu", f"install {keep}")
        if facts.jetson:  # PyPI has no onnxruntime-gpu for Jetsons: what is there was fetched by hand
            again = f"onnxruntime-gpu=={facts.packages['onnxruntime-gpu']}"
            fix = pip(facts, "uninstall -y onnxruntime", f"install --force-reinstall --no-deps {again}")
        return [Finding("ONNX Runtime", found, PROBLEM, why, fix)]
    if module.missing:
        why, fix = ".onnx files cannot be run without it; plans do not need it", beside_jetpack(facts, "onnxruntime")
        return [Finding("ONNX Runtime", "none", NOTE, why, pip(facts, f"install {fix}"))]
    if not module.works:
        package = both[0] if both else "onnxruntime"
        return [_cannot_import("ONNX Runtime", module, pip(facts, f"install --force-reinstall {package}"))]
    providers = [name.replace("ExecutionProvider", "") for name in module.extra.get("providers", [])]
    found, have = f"{module.version} ({', '.join(providers)})", numbers(module.version)
    if have < OLDEST_ORT:
        return [Finding("ONNX Runtime", found, PROBLEM, "1.14 or newer is needed", pip(facts, f"install -U {keep}"))]
    broken = module.extra.get("broken", {})
    if broken and facts.gpu is not None:
        name, reason = sorted(broken.items())[0]
        why = f"its {name} cannot be loaded ({reason}): --provider would be refused"
        fix = pip(facts, "install 'onnxruntime-gpu[cuda,cudnn]'") if not facts.jetson else ""
        return [Finding("ONNX Runtime", found, NOTE, why, fix)]
    if have < FUSES_FLOAT_BIASES:
        why = "before 1.20 it does not fuse the float biases of our INT8 files, which are then slower than FP32"
        newer = facts.python_version >= (3, 9)
        fix = pip(facts, f"install -U {beside_jetpack(facts, f'{keep}>=1.20')}") if newer else ""
        return [Finding("ONNX Runtime", found, NOTE, why + ("" if newer else " (Python 3.8 has no newer one)"), fix)]
    return [Finding("ONNX Runtime", found)]


def check_openvino(facts: Facts) -> List[Finding]:
    """Only .xml files need it. What it computes in decides whether bf16 and INT8 are worth a try."""
    module = facts.modules["openvino"]
    if module.missing:
        return [Finding("OpenVINO", "none", OK, "only .xml files need it")]
    if not module.works:
        return [_cannot_import("OpenVINO", module, pip(facts, "install --force-reinstall openvino"), NOTE)]
    types = [name for name in module.extra.get("types", []) if name in ("FP32", "FP16", "BF16", "INT8")]
    found = f"{module.version} ({', '.join(sorted(types))})" if types else str(module.version)
    if numbers(module.version) < OLDEST_OPENVINO:
        return [Finding("OpenVINO", found, NOTE, "tried with 2024.0 and newer only", pip(facts, "install -U openvino"))]
    return [Finding("OpenVINO", found)]


def check_native(facts: Facts) -> List[Finding]:
    """The library that runs .gsn files, and the instructions that it uses on this CPU."""
    module, what = facts.modules["native"], "native engine"
    if module.works:
        return [Finding(what, f"interface {module.version} ({module.extra['isa']})")]
    if not facts.modules["numpy"].works:
        return [Finding(what, "unknown", NOTE, "it cannot be asked without NumPy")]
    why = ".gsn files cannot be run without it" if module.missing else "it cannot be loaded"
    fix = install_native(facts)
    if not fix:
        why += f"; no wheel has it for {facts.host['system']} on {facts.host['machine']}: install a clone where gcc is"
    return [Finding(what, "none" if module.missing else module.error, NOTE, why, fix)]


def check_torch(facts: Facts) -> List[Finding]:
    """Only .pth files need it."""
    module = facts.modules["torch"]
    if module.missing:
        return [Finding("PyTorch", "none", OK, "only .pth files need it")]
    if not module.works:
        return [_cannot_import("PyTorch", module, pip(facts, "install --force-reinstall torch"), NOTE)]
    cuda = module.extra.get("cuda")
    return [Finding("PyTorch", f"{module.version} ({f'CUDA {cuda}' if cuda else 'CPU only'})")]


def check_power(facts: Facts) -> List[Finding]:
    """What slows a device down on purpose; only notes, since it may be wanted."""
    power, vary = facts.power, "clocks follow the load: latencies vary"
    if not facts.jetson:
        if power.governor in ("powersave", "ondemand", "conservative"):
            fix = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
            return [Finding("CPU governor", power.governor, NOTE, vary, fix)]
        return [Finding("CPU governor", power.governor)] if power.governor else []
    mode = Finding("power mode", power.mode or "unknown")
    if power.mode is None:
        mode = Finding("power mode", "unknown", NOTE, "nvpmodel gives no answer to this user", "sudo nvpmodel -q")
    elif power.best_id is not None and power.mode != power.best:
        better = f"{power.best} holds back less", f"sudo nvpmodel -m {power.best_id}"
        mode = Finding("power mode", power.mode, NOTE, *better)
    if power.pinned is None:
        return [mode]
    free = Finding("clocks", "free", NOTE, vary, "sudo jetson_clocks")
    return [mode, Finding("clocks", "pinned") if power.pinned else free]


def check_resources(facts: Facts) -> List[Finding]:
    """Cores, memory, disk."""
    gib = float(1 << 30)
    findings = [Finding("CPU cores", str(facts.host["cores"]))]
    if facts.memory_total is not None and facts.memory_free is not None:
        found = f"{facts.memory_total / gib:.1f} GiB, {facts.memory_free / gib:.1f} free"
        little = facts.memory_free < LITTLE_MEMORY
        why = "building a plan may run out of memory" if little else ""
        no_desktop = "sudo systemctl set-default multi-user.target && sudo reboot  # starts without the desktop"
        fix = no_desktop if little and facts.jetson else ""
        findings.append(Finding("memory", found, NOTE if little else OK, why, fix))
    free = facts.host["disk_free"]
    if free is not None:
        little = free < LITTLE_DISK
        why = "plans, their ONNX files and videos need room" if little else ""
        fix = "sudo apt-get clean" if little and facts.os_id in ("ubuntu", "debian") else ""
        findings.append(Finding("free disk space", f"{free / gib:.1f} GiB", NOTE if little else OK, why, fix))
    return findings


def check_cameras(facts: Facts) -> List[Finding]:
    """USB and CSI cameras as /dev/video*; the daemon that csi:// goes through."""
    closed = ", ".join(camera.device for camera in facts.cameras if not camera.readable)
    found = ", ".join(f"{camera.device} ({camera.name})" for camera in facts.cameras) or "none"
    fix = 'sudo usermod -aG video "$USER"  # then log in again'
    no_access = Finding("cameras", found, PROBLEM, f"this user may not read {closed}", fix)
    findings = [no_access if closed else Finding("cameras", found)]
    if facts.jetson and facts.argus not in (None, "active"):
        fix = "sudo systemctl restart nvargus-daemon"
        findings.append(Finding("nvargus-daemon", str(facts.argus), NOTE, "csi:// goes through it", fix))
    return findings


def _cannot_import(what: str, module: Module, fix: str, verdict: str = PROBLEM) -> Finding:
    found = "none" if module.missing else module.error
    return Finding(what, found, verdict, "it is needed" if module.missing else "it cannot be imported", fix)
