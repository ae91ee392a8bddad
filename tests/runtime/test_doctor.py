"""The doctor on recorded machines: what it finds, the line that mends it, what can run, its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doctor_machines import (
    HEALTHY,
    JETPACK5,
    JETPACK6,
    JETPACK7,
    MISSING,
    PC,
    SITE,
    VENV,
    Machine,
    Recorded,
    cuda_probe,
    cv2_probe,
    driver_probe,
    nvinfer_probe,
    ort_probe,
)
from places import ROOT
from runtime_toys import deployment_onnx

from gradseg.runtime import doctor
from gradseg.runtime.diagnosis import jetpack
from gradseg.runtime.diagnosis import probes as doctor_probes
from gradseg.runtime.diagnosis.engines import can_run, kinds, verdict
from gradseg.runtime.diagnosis.facts import Facts, gather, numbers
from gradseg.runtime.diagnosis.fixes import NOTE, OK, PROBLEM, Finding
from gradseg.runtime.diagnosis.system import System, run_probe
from gradseg.runtime.native.library import VARIABLE, native_isa

PYTHON = "/home/user/gradseg-env/bin/python"
NUMPY2 = "ImportError: numpy.core.multiarray failed to import"


def facts_of(machine: Machine, root: Path) -> Facts:
    return gather(Recorded(machine, root))


def row(findings: list[Finding], what: str) -> Finding:
    return next(finding for finding in findings if finding.what == what)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_has_no_problem_and_runs_plans(name: str, tmp_path: Path) -> None:
    facts = facts_of(HEALTHY[name], tmp_path)
    findings = doctor.examine(facts)
    assert not [finding for finding in findings if finding.verdict == PROBLEM]
    assert kinds(facts)[0].runs and can_run(facts)
    assert verdict(facts)[0].startswith("Can run here: .plan (TensorRT ")


@pytest.mark.parametrize(
    ("machine", "board", "release"),
    [
        (JETPACK5, "NVIDIA Jetson AGX Orin Developer Kit", "JetPack 5.1.2 (Jetson Linux 35.4.1), Ubuntu 20.04.6 LTS"),
        (JETPACK6, "NVIDIA Jetson Orin Nano", "JetPack 6.2 (Jetson Linux 36.4.3), Ubuntu 22.04.5 LTS"),
        (JETPACK7, "NVIDIA Jetson AGX Thor", "JetPack 7.0 (Jetson Linux 38.2.2), Ubuntu 24.04.3 LTS"),
    ],
)
def test_board_and_jetpack_are_named(machine: Machine, board: str, release: str, tmp_path: Path) -> None:
    findings = doctor.examine(facts_of(machine, tmp_path))
    assert row(findings, "board").found.startswith(board) and row(findings, "JetPack").found == release


NO_GPU = {"driver": MISSING, "tensorrt": MISSING, "cuda": MISSING, "nvinfer": MISSING}
NO_SYSTEM: dict[str, Any] = {**VENV, "version": "3.8.10", "system_packages": False}
BOTH_ORT = {"onnxruntime": "1.23.2", "onnxruntime-gpu": "1.23.2"}
HIDDEN_CV2 = cv2_probe("4.10.0", SITE.format("3.10") + "cv2/__init__.py", "NO", "NONE")
OTHER_LIBRARY = {"tensorrt": {"error": "ImportError: libnvinfer.so.10: cannot open shared object file"}}


# what is wrong, the row that says so, its verdict, part of the reason, the line that mends it
CASES: list[tuple[str, Machine, str, str, str, str]] = [
    (
        "JetPack 5.0 has no TensorRT 8.5",
        JETPACK5.but(files={"/etc/nv_tegra_release": "# R35 (release), REVISION: 1.0, GCID: 31346300, BOARD: t186ref"}),
        "JetPack",
        PROBLEM,
        "it has TensorRT 8.4.1; plans need 8.5 or newer",
        "flash JetPack 5.1 or newer: https://developer.nvidia.com/embedded/jetpack",
    ),
    (
        "Jetson Linux alone, as flashed without the SDK components",
        JETPACK6.but(commands={"dpkg-query -W": "ii \tnvidia-l4t-core\t36.4.3-20250107174145\n"}, probes=NO_GPU),
        "JetPack",
        NOTE,
        "CUDA 12.6 and TensorRT 10.3 come with the package nvidia-jetpack",
        "sudo apt-get update && sudo apt-get install -y nvidia-jetpack",
    ),
    (
        "another JetPack's packages",
        JETPACK6.but(commands={"dpkg-query -W": "ii \tnvidia-jetpack\t5.1.2-b104\n"}),
        "JetPack",
        PROBLEM,
        "nvidia-jetpack is 5.1.2-b104",
        "point /etc/apt/sources.list.d/nvidia-l4t-apt-source.list to r36.4, then: "
        "sudo apt-get update && sudo apt-get install -y nvidia-jetpack",
    ),
    (
        "an environment without the system's packages",
        JETPACK5.but(python=NO_SYSTEM, probes={"tensorrt": MISSING, "cv2": MISSING}),
        "Python",
        PROBLEM,
        "does not see JetPack's TensorRT and OpenCV",
        "sed -i 's/^include-system-site-packages.*/include-system-site-packages = true/' "
        "/home/user/gradseg-env/pyvenv.cfg",
    ),
    (
        "a Python that JetPack's modules are not for",
        JETPACK6.but(python={"version": "3.12.7", "conda": True, "venv": False}),
        "Python",
        PROBLEM,
        "for its Python 3.10 only",
        "/usr/bin/python3 -m venv --system-site-packages ~/gradseg-env && . ~/gradseg-env/bin/activate",
    ),
    (
        "NumPy 2 beside JetPack's OpenCV",
        JETPACK6.but(probes={"numpy": {"version": "2.2.6", "file": "n"}, "cv2": {"error": NUMPY2}}),
        "NumPy",
        PROBLEM,
        "built for NumPy 1 and not to be loaded with NumPy 2: cv2",
        f"{PYTHON} -m pip install 'numpy<2'",
    ),
    (
        "NumPy 1.24 beside TensorRT 8.5",
        JETPACK5.but(probes={"numpy": {"version": "1.24.4", "file": "n"}}),
        "NumPy",
        NOTE,
        "nptype() needs NumPy before 1.24",
        f"{PYTHON} -m pip install 'numpy<1.24'",
    ),
    (
        "pip's OpenCV hides JetPack's",
        JETPACK6.but(probes={"cv2": HIDDEN_CV2}, packages={"opencv-python-headless": "4.10.0.84"}),
        "OpenCV",
        PROBLEM,
        "pip's opencv-python-headless hides JetPack's OpenCV",
        f"{PYTHON} -m pip uninstall -y opencv-python-headless",
    ),
    (
        "no OpenCV on a Jetson",
        JETPACK7.but(probes={"cv2": MISSING}),
        "OpenCV",
        PROBLEM,
        "it is needed",
        "sudo apt-get install -y nvidia-opencv",
    ),
    (
        "two OpenCV packages",
        PC.but(packages={"opencv-python": "4.12.0.88"}),
        "OpenCV",
        PROBLEM,
        "opencv-python and opencv-python-headless overwrite each other's files",
        f"{PYTHON} -m pip uninstall -y opencv-python opencv-python-headless && {PYTHON} -m pip install opencv-python",
    ),
    (
        "both ONNX Runtimes, GPU",
        PC.but(packages=BOTH_ORT, probes={"onnxruntime": ort_probe("1.23.2")}),
        "ONNX Runtime",
        PROBLEM,
        "onnxruntime and onnxruntime-gpu are both installed",
        f"{PYTHON} -m pip uninstall -y onnxruntime onnxruntime-gpu && {PYTHON} -m pip install onnxruntime-gpu",
    ),
    (
        "both ONNX Runtimes, no GPU",
        PC.but(packages=BOTH_ORT, probes=NO_GPU, files={"/proc/driver/nvidia/version": None}),
        "ONNX Runtime",
        PROBLEM,
        "overwrite each other's files",
        f"{PYTHON} -m pip uninstall -y onnxruntime onnxruntime-gpu && {PYTHON} -m pip install onnxruntime",
    ),
    (
        "both ONNX Runtimes on a Jetson, whose GPU package is on no index",
        JETPACK6.but(packages=BOTH_ORT, probes={"onnxruntime": ort_probe("1.23.2")}),
        "ONNX Runtime",
        PROBLEM,
        "overwrite each other's files",
        f"{PYTHON} -m pip uninstall -y onnxruntime && "
        f"{PYTHON} -m pip install --force-reinstall --no-deps onnxruntime-gpu==1.23.2",
    ),
    (
        "no ONNX Runtime on a Jetson: NumPy is held",
        JETPACK6,
        "ONNX Runtime",
        NOTE,
        "plans do not need it",
        f"{PYTHON} -m pip install onnxruntime 'numpy<2'",
    ),
    (
        "an ONNX Runtime whose CUDA is not there",
        PC.but(
            probes={
                "onnxruntime": {
                    **ort_probe("1.23.2", "CUDAExecutionProvider"),
                    "broken": {"CUDAExecutionProvider": "libcublasLt.so.12: cannot open shared object file"},
                }
            }
        ),
        "ONNX Runtime",
        NOTE,
        "its CUDAExecutionProvider cannot be loaded (libcublasLt.so.12",
        f"{PYTHON} -m pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ),
    (
        "an ONNX Runtime slow with our INT8",
        PC.but(
            probes={"onnxruntime": ort_probe("1.19.2")}, packages={"onnxruntime-gpu": None, "onnxruntime": "1.19.2"}
        ),
        "ONNX Runtime",
        NOTE,
        "does not fuse the float biases of our INT8 files",
        f"{PYTHON} -m pip install -U 'onnxruntime-gpu>=1.20'",
    ),
    (
        "a driver too old for TensorRT's CUDA",
        PC.but(probes={"driver": driver_probe("NVIDIA GeForce RTX 2080", "sm75", "470.256.02", "11.4", 8.0, False)}),
        "TensorRT",
        PROBLEM,
        "it is built for CUDA 12, the driver supports CUDA 11.4 at most",
        "sudo ubuntu-drivers install && sudo reboot  # driver 525 or newer",
    ),
    (
        "a driver too old for cuda-python",
        PC.but(probes={"cuda": cuda_probe("13.0.3")}),
        "cuda-python",
        PROBLEM,
        "it is for CUDA 13, the driver supports CUDA 12.2 at most",
        f"{PYTHON} -m pip install 'cuda-python>=12,<13'",
    ),
    (
        "cuda-python 12 on JetPack 5",
        JETPACK5.but(probes={"cuda": cuda_probe("12.3.0")}),
        "cuda-python",
        PROBLEM,
        "the driver supports CUDA 11.4 at most",
        f"{PYTHON} -m pip install cuda-python==11.8.2",
    ),
    (
        "neither cuda-python nor pycuda",
        JETPACK7.but(probes={"cuda": MISSING}),
        "cuda-python",
        PROBLEM,
        "a plan cannot be run without cuda-python or pycuda",
        f"{PYTHON} -m pip install 'cuda-python>=13,<14'",
    ),
    (
        "pycuda alone",
        JETPACK6.but(probes={"cuda": MISSING, "pycuda": {"version": "2024.1.2", "cuda": "12.6"}}),
        "cuda-python",
        NOTE,
        "CUDA graphs need cuda-python",
        f"{PYTHON} -m pip install cuda-python==12.6.2.post1",
    ),
    (
        "a driver of two versions",
        PC.but(
            probes={"driver": {"version": "12.2", "init": "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "driver": "535.104"}}
        ),
        "NVIDIA driver",
        PROBLEM,
        "it answers CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "sudo reboot",
    ),
    (
        "a container without its GPU",
        PC.but(probes={"driver": MISSING}, files={"/.dockerenv": ""}),
        "NVIDIA driver",
        PROBLEM,
        "libcuda.so.1 is not found",
        "run the container with --gpus all",
    ),
    (
        "TensorRT's module 10.3 with library 8.6, from packages",
        JETPACK6.but(
            commands={
                "dpkg-query -W": "ii \tnvidia-jetpack\t6.2+b77\nii \tlibnvinfer8\t8.6.2.3-1+cuda12.2\n"
                "ii \tpython3-libnvinfer\t10.3.0.30-1+cuda12.5\n"
            },
            probes={**OTHER_LIBRARY, "nvinfer": nvinfer_probe("8.6.2")},
        ),
        "TensorRT",
        PROBLEM,
        "its Python module is 10.3.0.30-1+cuda12.5, the library that is there 8.6.2: they must be the same",
        "sudo apt-get install -y \"python3-libnvinfer=$(dpkg-query -W -f '${Version}' libnvinfer8)\"",
    ),
    (
        "TensorRT's module 10.3 with library 8.6, from pip",
        PC.but(probes={**OTHER_LIBRARY, "nvinfer": nvinfer_probe("8.6.1")}),
        "TensorRT",
        PROBLEM,
        "its Python module is 10.3.0, the library that is there 8.6.1",
        f"{PYTHON} -m pip install --force-reinstall tensorrt==10.3.0",
    ),
    (
        "TensorRT's module 10.3 with library 10.7, by LD_LIBRARY_PATH",
        PC.but(probes={"tensorrt": {"version": "10.3.0", "file": "t", "library": "10.7.0"}}),
        "TensorRT",
        PROBLEM,
        "its Python module is 10.3.0, the library that is there 10.7.0",
        "unset LD_LIBRARY_PATH  # it leads to another TensorRT than pip's",
    ),
    (
        "pip's TensorRT on a Jetson",
        JETPACK6.but(
            packages={"tensorrt": "10.7.0", "tensorrt-cu12": "10.7.0"},
            probes={"tensorrt": {"error": "ImportError: libnvdla_compiler.so: cannot open shared object file"}},
        ),
        "TensorRT",
        PROBLEM,
        "pip's tensorrt 10.7.0 is not made for this Jetson and hides JetPack's",
        f"{PYTHON} -m pip uninstall -y tensorrt tensorrt-cu12",
    ),
    (
        "TensorRT's library without its module",
        JETPACK5.but(probes={"tensorrt": MISSING}),
        "TensorRT",
        PROBLEM,
        "without its Python module",
        "sudo apt-get install -y python3-libnvinfer",
    ),
    (
        "a GPU without TensorRT",
        PC.but(probes={"tensorrt": MISSING}, packages=dict.fromkeys((n for n in PC.packages if "tensorrt" in n), None)),
        "TensorRT",
        NOTE,
        "plans cannot be built or run without it",
        f"{PYTHON} -m pip install tensorrt-cu12",
    ),
    (
        "a module that crashes",
        PC.but(probes={"onnxruntime": {"error": "crashes (SIGSEGV)"}}),
        "ONNX Runtime",
        PROBLEM,
        "it cannot be imported",
        f"{PYTHON} -m pip install --force-reinstall onnxruntime-gpu",
    ),
    (
        "a power mode that holds back; the best is not number 0 on every board",
        JETPACK6.but(commands={"nvpmodel -q": "NV Power Mode: 15W\n0"}),
        "power mode",
        NOTE,
        "MAXN_SUPER holds back less",
        "sudo nvpmodel -m 2",
    ),
    (
        "a clone whose native library was not built",
        PC.but(probes={"native": MISSING}, host={"clone": "/home/user/grad seg", "compiler": "/usr/bin/gcc"}),
        "native engine",
        NOTE,
        ".gsn files cannot be run without it",
        f"{PYTHON} -m pip install -e '/home/user/grad seg'",
    ),
    (
        "a clone without a compiler",
        JETPACK6.but(probes={"native": MISSING}, host={"clone": "/home/user/gradseg", "compiler": None}),
        "native engine",
        NOTE,
        ".gsn files cannot be run without it",
        f"{PYTHON} -m pip install --force-reinstall --no-deps gradseg-0.1.0-py3-none-manylinux_2_17_aarch64.whl"
        "  # from a clone's make wheels",
    ),
    (
        "a native library that crashes",
        PC.but(probes={"native": {"error": "crashes (SIGILL)"}}),
        "native engine",
        NOTE,
        "it cannot be loaded",
        f"{PYTHON} -m pip install --force-reinstall --no-deps gradseg-*-py3-none-manylinux_2_17_x86_64.whl"
        "  # from a clone's make wheels",
    ),
    (
        "a processor that no wheel is for",
        PC.but(probes={"native": MISSING}, host={"machine": "armv7l"}),
        "native engine",
        NOTE,
        "no wheel has it for Linux on armv7l",
        "",
    ),
    (
        "the power mode where nvpmodel wants root",
        JETPACK6.but(commands={"nvpmodel -q": None}, files={"/var/lib/nvpmodel/status": "pmode:0001\n"}),
        "power mode",
        NOTE,
        "MAXN_SUPER holds back less",
        "sudo nvpmodel -m 2",
    ),
    (
        "clocks that follow the load",
        JETPACK5.but(files={"/sys/class/devfreq/17000000.ga10b/min_freq": "306000000\n"}),
        "clocks",
        NOTE,
        "latencies vary",
        "sudo jetson_clocks",
    ),
    (
        "a governor that saves power",
        PC.but(files={"/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"}),
        "CPU governor",
        NOTE,
        "latencies vary",
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    ),
    (
        "a camera that the user may not read",
        JETPACK5.but(closed=("/dev/video0",)),
        "cameras",
        PROBLEM,
        "this user may not read /dev/video0",
        'sudo usermod -aG video "$USER"  # then log in again',
    ),
    (
        "a CSI daemon that died",
        JETPACK5.but(commands={"systemctl is-active": "failed"}),
        "nvargus-daemon",
        NOTE,
        "csi:// goes through it",
        "sudo systemctl restart nvargus-daemon",
    ),
    (
        "a Python that pip may not change",
        JETPACK7.but(
            python={"executable": "/usr/bin/python3", "venv": False, "venv_config": None, "managed": True},
            probes={"cuda": MISSING},
        ),
        "cuda-python",
        PROBLEM,
        "a plan cannot be run",
        "python3 -m venv --system-site-packages ~/gradseg-env && "
        "~/gradseg-env/bin/python -m pip install 'cuda-python>=13,<14'",
    ),
]


@pytest.mark.parametrize(("machine", "what", "judged", "why", "fix"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_conflict_and_the_line_that_mends_it(
    machine: Machine, what: str, judged: str, why: str, fix: str, tmp_path: Path
) -> None:
    findings = doctor.examine(facts_of(machine, tmp_path))
    found = row(findings, what)
    assert (found.verdict, found.fix) == (judged, fix) and why in found.why
    for finding in findings:
        assert finding.verdict != PROBLEM or finding.fix, f"{finding.what}: a problem without a fix"
        assert "\n" not in finding.fix + finding.why


def test_a_recent_onnxruntime_is_not_asked_of_python_3_8(tmp_path: Path) -> None:
    machine = JETPACK5.but(probes={"onnxruntime": ort_probe("1.16.3")}, packages={"onnxruntime": "1.16.3"})
    found = row(doctor.examine(facts_of(machine, tmp_path)), "ONNX Runtime")
    assert found.verdict == NOTE and found.why.endswith("(Python 3.8 has no newer one)") and not found.fix


def test_what_can_run_and_what_plans_are_missing(tmp_path: Path) -> None:
    lines = verdict(facts_of(PC.but(probes=NO_GPU, files={"/proc/driver/nvidia/version": None}), tmp_path / "a"))
    assert lines == [
        "Can run here: .gsn (GradSeg's own kernels, avx2); .onnx (ONNX Runtime on the CPU); .pth (PyTorch)",
        ".plan (TensorRT) needs: an NVIDIA GPU with its driver, TensorRT 8.5 or newer with its Python module, "
        "cuda-python or pycuda",
        ".xml (OpenVINO on the CPU) needs: OpenVINO (openvino)",
        ".onnx (ONNX Runtime, --provider cuda) needs: an NVIDIA GPU with its driver",
        ".onnx (ONNX Runtime, --provider tensorrt) needs: an NVIDIA GPU with its driver",
    ]
    lines = verdict(facts_of(JETPACK6.but(probes={"cv2": MISSING, "cuda": cuda_probe("13.0.3")}), tmp_path / "b"))
    assert lines[0] == "Nothing can run here yet"
    assert ".plan (TensorRT 10.3.0) needs: OpenCV, cuda-python or pycuda" in lines
    assert ".onnx (ONNX Runtime on the CPU) needs: OpenCV, ONNX Runtime 1.14 or newer" in lines
    assert ".gsn (GradSeg's own kernels, neon-dotprod) needs: OpenCV" in lines
    lines = verdict(facts_of(PC, tmp_path / "c"))
    assert "--provider cuda" in lines[0] and "--provider tensorrt" in lines[0]
    assert lines[1:] == [".xml (OpenVINO on the CPU) needs: OpenVINO (openvino)"]


def test_the_wheel_with_numpy_and_opencv_alone_runs_the_native_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = {name: probe if name in ("numpy", "cv2", "native") else None for name, probe in PC.probes.items()}
    machine = PC.but(probes=only, packages={"gradseg": "0.1.0"}, files={"/proc/driver/nvidia/version": None})
    assert doctor.main([], Recorded(machine, tmp_path / "a")) == 0
    out = capsys.readouterr().out
    assert (
        "\nCan run here: .gsn (GradSeg's own kernels, avx2)\n" in out and "native engine    interface 2 (avx2)" in out
    )
    assert re.findall(r"(?m)^(\.\w+) \(.*\) needs: ", out) == [".plan", ".onnx", ".xml", ".onnx", ".onnx", ".pth"]
    machine = machine.but(probes={"native": MISSING})
    assert doctor.main([], Recorded(machine, tmp_path / "b")) == 1
    out = capsys.readouterr().out
    assert "Nothing can run here yet" in out and ".gsn (GradSeg's own kernels) needs: its native library" in out
    assert f"{PYTHON} -m pip install --force-reinstall --no-deps gradseg-0.1.0-py3" in out
    lines = verdict(facts_of(machine.but(probes={"numpy": MISSING}), tmp_path / "c"))
    assert ".gsn (GradSeg's own kernels) needs: NumPy" in lines


def test_the_native_probe_in_its_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library that is here, and a file that is none."""
    isa = native_isa()
    if isa is not None:
        assert System().probe("native")["isa"] == isa
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv(VARIABLE, str(broken))
    assert "cannot be loaded as the native engine" in System().probe("native")["error"]
    host = System().host()
    assert host["clone"] == str(ROOT) and (host["compiler"] is None or Path(host["compiler"]).is_absolute())


def test_a_damaged_file_of_each_kind_is_to_be_made_again_by_its_own_exporter(tmp_path: Path) -> None:
    for suffix, exporter in ((".gsn", "to_native"), (".onnx", "to_onnx"), (".xml", "to_openvino")):
        machine = PC.but(probes={"engine": {"error": "damaged", "exit_code": 2}})
        found = doctor.check_engine(Recorded(machine, tmp_path), Path(f"m{suffix}"))
        assert found.verdict == PROBLEM and found.fix.endswith(f"python export/{exporter}.py CKPT")


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "dg2.onnx"
    engine.write_bytes(b"x")
    nothing = PC.but(probes={"numpy": MISSING})
    assert doctor.main([], Recorded(PC, tmp_path / "a")) == 0
    assert doctor.main([], Recorded(nothing, tmp_path / "b")) == 1
    opens = {"backend": "onnxruntime 1.23.2", "device": "CPU", "precision": "fp32", "frame_hw": [360, 480]}
    assert doctor.main(["--engine", str(engine)], Recorded(PC.but(probes={"engine": opens}), tmp_path / "c")) == 0
    assert "engine dg2.onnx" in capsys.readouterr().out
    stale = {"error": "dg4.plan: version differs. Rebuild: python export/to_trt.py --rebuild dg4.plan", "exit_code": 2}
    assert doctor.main(["--engine", str(engine)], Recorded(PC.but(probes={"engine": stale}), tmp_path / "d")) == 1
    assert "\n   python export/to_trt.py --rebuild dg4.plan\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--engin", "a", "b"])
    assert ended.value.code == 2


def test_one_line_that_mends_two_rows_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = JETPACK6.but(probes={"numpy": {"version": "2.2.6", "file": "n"}, "cv2": {"error": NUMPY2}})
    assert doctor.main([], Recorded(machine, tmp_path)) == 1
    out = capsys.readouterr().out
    assert (
        out.count("-m pip install 'numpy<2'\n") == 1
        and "2. OpenCV (problem): it was built for NumPy 1\n   as 1." in out
    )


def test_a_gpu_provider_without_a_gpu_is_no_matter(tmp_path: Path) -> None:
    broken = {**ort_probe("1.23.2", "CUDAExecutionProvider"), "broken": {"CUDAExecutionProvider": "libcublasLt.so.12"}}
    findings = doctor.examine(facts_of(PC.but(probes={**NO_GPU, "onnxruntime": broken}), tmp_path))
    assert row(findings, "ONNX Runtime").verdict == OK


def test_the_json_holds_everything(tmp_path: Path) -> None:
    target = tmp_path / "doctor.json"
    doctor.main(["--json", str(target)], Recorded(JETPACK6, tmp_path / "m"))
    found = json.loads(target.read_text("utf-8"))
    assert found["format"] == "gradseg.doctor/2" and found["runs"] is True
    assert found["facts"]["l4t"] == "36.4.3" and found["facts"]["modules"]["tensorrt"]["version"] == "10.3.0"
    assert found["facts"]["kernel_driver"] == "540.4.0" and found["facts"]["cuda_toolkit"] == "12.6.11"
    assert {engine["suffix"] for engine in found["engines"] if engine["runs"]} == {".plan", ".gsn"}
    assert found["conditions"]["date"]


def test_the_plain_table_cuts_nothing(tmp_path: Path) -> None:
    long = Finding("OpenCV", "ImportError: " + "libGL.so.1 cannot open shared object file " * 5, PROBLEM, "why", "fix")
    lines = doctor.plain_table([Finding("Python", "3.8.10"), long])
    assert " ".join(" ".join(lines).split()).count("libGL.so.1") == 5 and all("\x1b" not in line for line in lines)
    assert lines[0].split() == ["Python", "3.8.10", "ok"] and lines[1].endswith("problem")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes (SIGSEGV)"),
        ("raise SystemExit(7)", "ended with exit code 7: no message"),
        ("print('gradseg-doctor:{broken')", "ended with exit code 0: no message"),
        ("import sys; sys.exit('no BLAS')", "ended with exit code 1: no BLAS"),
    ],
)
def test_a_probe_that_gives_no_answer(program: str, error: str) -> None:
    assert run_probe([sys.executable, "-c", program], 20.0) == {"error": error}


def test_a_probe_that_hangs_or_cannot_start() -> None:
    hangs = run_probe([sys.executable, "-c", "import threading; threading.Event().wait()"], 0.2)
    assert hangs["error"].startswith("hangs: no answer within")
    assert "cannot be asked" in run_probe(["/no/such/python"], 1.0)["error"]


def test_a_probe_survives_what_a_module_prints() -> None:
    program = f"print('banner'); print({doctor_probes.MARK!r} + '{{\"version\": \"1\"}}'); print('atexit noise')"
    assert run_probe([sys.executable, "-c", program], 20.0) == {"version": "1"}


def fake_module(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


def real_probe(name: str, folder: Path) -> dict[str, Any]:
    """A probe in a real process in which `folder` comes first on sys.path."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); sys.argv = ['x', {name!r}]; "]
    command[-1] += f"exec(open({str(ROOT / 'runtime' / 'diagnosis' / 'probes.py')!r}).read())"
    command[-1] = command[-1].replace("exec(", "__file__ = '/x/y.py'; exec(")
    return run_probe(command, 30.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '9.9'\ndef getBuildInformation(): return 'b'", {"version": "9.9", "build": "b"}),
        ("raise ImportError('numpy.core.multiarray failed to import')", {"error": NUMPY2}),
        ("import no_such_part", {"error": "No module named 'no_such_part'"}),
        ("import os; os.abort()", {"error": "crashes (SIGABRT)"}),
        ("1 / 0", {"error": "ZeroDivisionError: division by zero"}),
    ],
)
def test_imports_that_fail_are_told_apart(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    fake_module(tmp_path / "site", "cv2", text)
    answer = real_probe("cv2", tmp_path / "site")
    assert {key: answer.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("number", "text"), [(8503, "8.5.3"), (8601, "8.6.1"), (100300, "10.3.0"), (101602, "10.16.2")]
)
def test_the_library_version_in_both_of_its_forms(number: int, text: str) -> None:
    assert doctor_probes.nvinfer_text(number) == text


def test_versions_as_numbers() -> None:
    assert numbers("8.5.2-1+cuda11.4") == (8, 5, 2) and numbers("2.13.0+cpu") == (2, 13, 0) and numbers(None) == ()


def test_jetpack_by_its_jetson_linux() -> None:
    assert jetpack.l4t_of("# R36 (release), REVISION: 3.0, GCID: 36191598", None) == "36.3.0"
    assert jetpack.l4t_of(None, "39.2.0-20260601141651") == "39.2.0"
    assert jetpack.l4t_of("", None) is None
    assert [jetpack.jetpack_of(v) for v in ("36.3.0", "36.9.9", "32.7.1", "50.1")] == ["6.0", "6.x", "4.x", "unknown"]
    stacks = {v: jetpack.stack_of(v) for v in ("35.6.2", "36.3.0", "36.5.2", "38.4.0", "39.2.1", "32.7.1")}
    assert [stack and stack.tensorrt for stack in stacks.values()] == [
        "8.5.2",
        "8.6.2",
        "10.3",
        "10.13.3",
        "10.16.2",
        None,
    ]
    assert all(jetpack.stack_of(release) for release in jetpack.RELEASES)


def test_this_machine_can_be_examined(tmp_path: Path) -> None:
    """For real: every probe in its process, the table through a pipe, an engine file opened."""
    engine = deployment_onnx(tmp_path / "toy.onnx")
    script, target = str(ROOT / "runtime" / "doctor.py"), tmp_path / "d.json"
    done = subprocess.run(
        [sys.executable, script, "--engine", str(engine), "--json", str(target)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout and re.search(r"(?m)^engine toy.onnx +onnxruntime .* ok$", done.stdout), (
        done.stdout
    )
    found = json.loads(target.read_text("utf-8"))
    assert found["facts"]["modules"]["numpy"]["version"] and found["runs"]


def test_an_engine_that_cannot_be_opened(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not an ONNX file")
    found = doctor.check_engine(System(), broken)
    assert found.verdict == PROBLEM and "cannot load it" in found.why and found.fix.startswith("copy it here again")
    if native_isa() is not None:
        program = tmp_path / "broken.gsn"
        program.write_bytes(b"not a program")
        found = doctor.check_engine(System(), program)
        assert "not a GradSeg native program" in found.why and found.fix.endswith("python export/to_native.py CKPT")
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"a plan without its manifest")
    found = doctor.check_engine(System(), plan)
    assert "no m.plan.json beside it" in found.why and found.fix == f"python export/to_trt.py --rebuild {plan}"


def test_the_doctor_starts_without_numpy_and_opencv(tmp_path: Path) -> None:
    """Broken packages must not take the doctor down with them."""
    for name in ("numpy", "cv2", "onnxruntime", "torch"):
        fake_module(tmp_path / "site", name, "import os; os.abort()")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, str(ROOT / "runtime" / "doctor.py")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Nothing can run here yet" in done.stdout and done.stdout.count("crashes (SIGABRT)") >= 4


def test_ok_rows_say_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([], Recorded(JETPACK7.but(probes={"onnxruntime": ort_probe("1.23.2")}), tmp_path))
    out = capsys.readouterr().out
    assert (
        "\n1. " not in out
        and "Can run here: .plan (TensorRT 10.13.3.9); .gsn (GradSeg's own kernels, neon-i8mm); .onnx (ONNX" in out
    )
    assert OK in out
