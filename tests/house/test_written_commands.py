"""README.md and docs/: every command is run, small, in one folder, page after page, so it finds earlier results."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, Iterator

import cv2
import numpy as np
import onnx
import pytest
import torch
from foreign_toys import unet
from places import ROOT

from gradseg.commands import COMMANDS
from gradseg.data.specs import open_data
from gradseg.models.checkpoint import gradual_network, load_checkpoint, save_checkpoint
from gradseg.models.spec import distinct_palette, spec_for

FIRST = ("README", "train", "export", "quantise", "tune", "tensorrt", "run")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in FIRST)]
PAGES += sorted(set((ROOT / "docs").glob("*.md")) - set(PAGES))
SCRIPTS = dict(re.findall(r"\| `gradseg ([\w ]+)` \| `([\w/]+\.py)`", PAGES[1].read_text("utf-8")))
SECTION = (ROOT / "pyproject.toml").read_text("utf-8").partition("optional-dependencies]")[2].partition("\n[")[0]
EXTRAS = re.findall(r"(?m)^([a-z-]+) = \[", SECTION)
FLOORS = ("train", "export", "calibration", "runtime", "benchmarks")


@dataclasses.dataclass(frozen=True)
class Way:
    """How a command is run here: `words` make it quick; it ends with `code` and says `says` (a pattern)."""

    words: str = ""
    code: int = 0
    says: str = ""


CALIB = "--calib-frames 2"
NO_CAMERA = "cam0: no camera /dev/video0 on this machine"
NO_GPU = Way("", 3, "a TensorRT engine needs an NVIDIA GPU with its driver; this machine has none")
NO_CACHE = Way("", 2, "--timing-cache: tensorrt_rtx .* does not have it")  # the other TensorRTs have
CEILINGS = ROOT / "benchmarks" / "results" / "roofline.json"

# By how the command begins; the longest that fits counts.
WAYS = {
    "gradseg fit": Way("--epochs 3 --size 64x96 --limit 4 --batch 2 --val-limit 2 --threads 1"),
    "gradseg finetune": Way(f"--epochs 1 --batch 2 --limit 2 --val-limit 2 {CALIB} --threads 1"),
    "gradseg export onnx": Way(),
    "gradseg export onnx erfnet_pretrained.pth": Way("--size 64x96"),
    "gradseg export ort": Way(f"{CALIB} --no-timing --threads 1"),
    "gradseg export openvino": Way("--threads 1"),
    "gradseg export native": Way(CALIB),
    "gradseg export trt": Way(CALIB, says="built, not run"),
    "gradseg export trt dg2.onnx --precision best": NO_CACHE,
    "gradseg export trt dg2.720p.onnx": NO_CACHE,
    "gradseg calibrate": Way("--frames 2"),
    "gradseg sensitivity": Way(f"--limit 1 {CALIB} --threads 1"),
    "gradseg report": Way(f"{CALIB} --limit 1 --samples 0 --threads 1"),
    "gradseg tune": Way(f"--limit 2 {CALIB} --threads 1 --time-budget 5", says="run it: "),
    "gradseg run cam0": Way("", 2, NO_CAMERA),
    "gradseg run drive.mp4": Way("--max-frames 2", says="dg2-star-light"),
    "gradseg run drive.mp4 --engine": Way("--max-frames 2"),
    "gradseg run --engine": Way("--max-frames 2"),
    "gradseg run --engine dg2.onnx cam0": Way("", 2, NO_CAMERA),
    "gradseg run --engine dg2.plan": NO_GPU,
    "gradseg run --engine dg2.720p.plan": NO_GPU,
    "gradseg doctor": Way(),
    "gradseg models": Way(says="dg2-star-light"),
    "gradseg bench accuracy": Way("--limit 1"),
    "gradseg bench accuracy --engine dg2.int8.plan": NO_GPU,
    "gradseg bench latency": Way("--samples 2 --warmup 1"),
    "gradseg bench latency --engine dg2.plan": NO_GPU,
    "gradseg bench latency --engine dg2.720p.plan": NO_GPU,
    "gradseg bench models": Way(),
    "gradseg bench versus": Way(
        "--models d-star-light --pipelines 'gradseg onnxruntime fp32' --frames 5 --val-frames 1 --threads 1 "
        "--source drive.mp4 --data camvid:CamVid --work versus"
    ),
    "gradseg bench roofline": Way(f"--frames 2 --threads 1 --ceilings {CEILINGS}"),
    "gradseg bench loop": Way("--rounds 1 --threads 1"),
    "gradseg bench engines": Way(
        "assets/dg2-star-light.pth --engines onnxruntime --size 64x96 --samples 2 --threads 1"
    ),
    "gradseg bench gpu": Way(
        "--models dg2-star-light --size 64x96 --frame-size 64x96 --frames 2 --precisions fp32 --borders network "
        "--torch none --samples 2 --warmup 1 --data camvid:CamVid/val --calib camvid:CamVid/train --json gpu.json "
        "--stand-in ort"
    ),
    "gradseg bench calibration": Way("--frames 2 --size 64x96 --tools gradseg"),
}


# Lines of other programs, by how they begin; what they need is not there.
ELSEWHERE = {
    "python3 -m venv": "an environment of the user's",
    "/usr/bin/python3 -m venv": "a Jetson's Python",
    ". ": "that environment",
    "python -m pip install -U pip": "in that environment",
    "python -m pip install 'cuda-python==": "a Jetson; test_jetson_doc.py holds the versions against the doctor's",
    "python -m pip install --no-deps gradseg-": "a wheel; test_wheel.py builds and installs it",
    "pip uninstall -y opencv-python-headless": "would break this environment",
    "scp ": "a board in reach",
    "sudo ": "a Jetson",
    "grep POWER_MODEL /etc/nvpmodel.conf": "a Jetson",
}


def commands() -> list[str]:
    """Every line of the pages' `sh` blocks, once."""
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(filter(None, lines)))


def way_of(command: str) -> Way:
    known = [start for start in WAYS if f"{command} ".startswith(f"{start} ")]
    assert known, f"{command}: say in WAYS how it can be run here"
    return WAYS[max(known, key=len)]


def winner() -> Path:
    """What tune wrote: engine.gsn in the pages, perhaps another kind here."""
    return next(path for path in sorted(Path("tuned").glob("engine.*")) if path.suffix in (".gsn", ".onnx", ".xml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, at 64x96: a checkpoint, data, a video, other people's networks."""
    folder = tmp_path_factory.mktemp("documents")
    frames = open_data("scenes:frames=4,size=64x96")
    (folder / "assets").mkdir()
    network = load_checkpoint(ROOT / "assets" / "dg2-star-light.pth").network
    network.spec = dataclasses.replace(network.spec, input_hw=(64, 96))
    save_checkpoint(folder / "assets" / "dg2-star-light.pth", network)
    labelled(folder / "CamVid", frames, 11)
    (classes,) = re.findall(r"```json\n(.*?)```", PAGES[0].read_text("utf-8"), re.DOTALL)
    labelled(folder / "my_data", frames, len(json.loads(classes)["classes"]))
    for part in ("train", "val"):
        (folder / "my_data" / part / "classes.json").write_text(classes, "utf-8")
    (folder / "my_frames").symlink_to(folder / "CamVid" / "train" / "images")
    video = cv2.VideoWriter(str(folder / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 64))
    for sample in frames:
        video.write(sample.image)
    video.release()
    (folder / "unet.json").write_text(
        json.dumps({"mean": [0.5] * 3, "std": [0.2] * 3, "classes": ["road", "car", "person"]})
    )
    onnx.save(unet(classes=3).model(["scores"]), folder / "unet.onnx")
    erfnet = gradual_network(spec_for("erfnet", [f"class {index}" for index in range(20)], distinct_palette(20)))
    torch.save(erfnet.state_dict(), folder / "erfnet_pretrained.pth")
    return folder


def labelled(folder: Path, frames: Any, classes: int) -> None:
    """FOLDER/train and val with images/ and labels/ of two frames each."""
    for index, part in enumerate(("train", "train", "val", "val")):
        for name in ("images", "labels"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        sample = frames[index]
        label = np.where(sample.label == 255, 255, sample.label % classes).astype(np.uint8)
        label[label == 255] = 11 if classes == 11 else 255
        cv2.imwrite(str(folder / part / "images" / f"{index:04}.png"), sample.image)
        cv2.imwrite(str(folder / part / "labels" / f"{index:04}.png"), label)


@pytest.fixture
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In that folder; no GPU is seen; what a script does to this process is undone."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads, handlers = torch.get_num_threads(), {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("gradseg ")], ids=lambda c: c[8:60])
@pytest.mark.usefixtures("at_home")
def test_a_command_runs(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    way = way_of(command)
    words = [*shlex.split(command, comments=True)[1:], *shlex.split(way.words)]
    if way.says == NO_CAMERA and Path("/dev/video0").exists():
        pytest.skip("needs a machine without a camera")
    words = [str(winner()) if word == "tuned/engine.gsn" else word for word in words]
    with pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "argv", ["gradseg", *words])
        runpy.run_module("gradseg", run_name="__main__")
    said = "".join(capsys.readouterr())
    assert ended.value.code == way.code, said[-1500:]
    assert re.search(way.says, said), said[-1500:]


@pytest.mark.parametrize("command", [c for c in commands() if not c.startswith("gradseg ")], ids=lambda c: c[:60])
def test_another_programs_line_names_what_there_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    elif words[0] == "torchrun":  # needs two processes that talk to each other; tests/train has them
        script = next(index for index, word in enumerate(words) if word.endswith(".py"))
        with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [words[script], "--help"])
            runpy.run_path(str(ROOT / words[script]), run_name="__main__")
        helped = capsys.readouterr().out
        assert all(re.search(rf"{word}\b", helped) for word in words[script + 1 :] if word.startswith("--"))
    elif words[:2] == ["pip", "install"]:
        assert words[2:3] == ["-e"] and extras_in(command) <= set(EXTRAS), command
    else:
        assert command.startswith(tuple(ELSEWHERE)), f"{command}: say in ELSEWHERE why it cannot be run here"


def extras_in(text: str) -> set[str]:
    """Of `".[ort,export]"` and `"gradseg-….whl[ort]"`."""
    return {name for names in re.findall(r"(?:\.|\.whl)\[([a-z,-]+)\]", text) for name in names.split(",")}


def test_the_extras_named_are_there_and_all_are_explained() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert extras_in(text) <= set(EXTRAS)
    assert sorted(re.findall(r"(?m)^\| `\[([a-z-]+)\]` \|", text)) == sorted(EXTRAS)


def test_torch_is_never_unbounded() -> None:
    needs = re.findall(r'"(torch\b[^"]*)"', SECTION)
    assert needs and all("<" in need for need in needs)


def test_the_tables_know_no_more_than_the_pages() -> None:
    known = commands()
    used = {max((s for s in WAYS if f"{c} ".startswith(f"{s} ")), key=len) for c in known if c.startswith("gradseg ")}
    assert used == set(WAYS)


def test_every_command_and_script_is_explained() -> None:
    assert {words: script for words, (script, _) in COMMANDS.items()} == SCRIPTS
    doors = {
        path
        for name in FLOORS
        for path in (ROOT / name).glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text("utf-8")
    }
    assert {ROOT / script for script in SCRIPTS.values()} == doors
    lines = commands()
    assert not [
        name
        for name in sorted(set(SCRIPTS) - {"bench demo"})
        if not any(f"{line} ".startswith(f"gradseg {name} ") for line in lines)
    ]
    text = "".join(page.read_text("utf-8") for page in PAGES)
    for name in re.findall(r"`gradseg ((?:export |bench )?[a-z]+)\b(?! …)", text):
        assert name in SCRIPTS, name


@pytest.mark.usefixtures("at_home")
def test_a_python_block_runs() -> None:
    """After the commands, which wrote dg2.onnx."""
    blocks = {
        block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    }
    network = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1))
    cv2.imwrite("street.jpg", open_data("scenes:frames=1,size=64x96")[0].image)
    for block in blocks:
        exec(block, {"my_network": network, "train_one_epoch": lambda network: None})
    assert Path("overlay.png").is_file() and network[0].groups == 4
