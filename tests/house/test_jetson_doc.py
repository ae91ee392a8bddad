"""docs/jetson.md: its commands parse, its version table is the doctor's, its links and camera strings are real."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from places import ROOT

from gradseg.base.errors import GradsegError
from gradseg.runtime.diagnosis.jetpack import RELEASES, STACKS, stack_of
from gradseg.runtime.native import library as native_library
from gradseg.runtime.sources import cameras, grammar
from gradseg.runtime.sources.grammar import open_source

DOC = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")


def test_every_step_has_its_command() -> None:
    commands = " ".join(re.findall(r"```sh\n(.*?)```", DOC, re.DOTALL))
    steps = ("doctor", "export onnx", "export ort", "export trt", "run", "bench latency", "bench accuracy")
    assert all(f"\ngradseg {step} " in f"\n{commands}" for step in steps)


def test_the_table_says_what_the_doctor_knows() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in DOC.splitlines() if re.match(r"\| \d", line)
    ]
    rows = [row for row in rows if len(row) == 8]
    assert len(rows) == len([stack for stack in STACKS if stack.since > (35, 1)])
    for _, l4t, _, ubuntu, python, cuda, tensorrt, pin in rows:
        stack = stack_of(re.findall(r"\d+\.\d+", l4t)[0])
        assert stack is not None
        assert (ubuntu, python, cuda, tensorrt) == (stack.ubuntu, stack.python, stack.cuda, stack.tensorrt)
        assert pin == f"`{stack.cuda_python}`"
    assert RELEASES["36.4.3"] == "6.2" and "is 36.4.3" in DOC


def test_the_sources_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, tuple[Any, ...]]] = []

    def opener(kind: str) -> Any:
        return lambda *arguments: opened.append((kind, arguments))

    for kind in ("CsiCamera", "UsbCamera", "NetworkCamera"):
        monkeypatch.setattr(grammar, kind, opener(kind))
    monkeypatch.setattr(grammar, "SceneSource", lambda *arguments, **options: opened.append(("SceneSource", arguments)))
    table = re.findall(r"(?m)^\| (`(?:csi|cam|rtsp|scenes).*?) \|", DOC.partition("## 8. Run")[2].partition("## 9.")[0])
    texts = [text.replace("…", "host/stream") for row in table for text in re.findall(r"`([^`]+)`", row)]
    for text in texts:
        open_source(text)
    kinds = [kind for kind, _ in opened]
    assert kinds == ["CsiCamera"] * 2 + ["UsbCamera"] * 3 + ["NetworkCamera", "SceneSource"]
    with pytest.raises(GradsegError, match="unknown kind of source"):
        open_source("csicam://0")
    assert "width=1280, height=720" in cameras.csi_pipeline(0) and "always 1280x720 at 30" in DOC


def test_the_wheels_are_those_that_are_built() -> None:
    names = r"gradseg-[\w.]+-py3-none-\w+\.whl"
    planned = subprocess.run(["make", "-n", "wheels"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(names, DOC)) == set(re.findall(names, planned))
    platforms = re.findall(r"--plat-name=(\w+)", planned)
    assert platforms == ["manylinux_2_17_x86_64", "manylinux_2_17_aarch64"]
    assert all(f"py3-none-{platform}" in native_library.WHEELS for platform in platforms)


def test_messages_explained_are_messages_given() -> None:
    code = " ".join(path.read_text("utf-8") for name in ("runtime", "export") for path in (ROOT / name).rglob("*.py"))
    messages = (
        "differs: found ",
        "this machine has none",
        "no TensorRT is importable here",
        "opened, but gives no frame",
    )
    messages += ("a CSI camera needs an OpenCV with GStreamer", "not enough GPU memory")
    for message in (*messages, "this conversion needs the onnx package", " beside it"):
        assert message in DOC and message in code, message


def test_it_says_what_was_not_tried() -> None:
    assert "Nothing on this page has been run on a Jetson yet" in DOC
    assert not re.search(r"\d+ (FPS|frames per second)", DOC.replace("at 30 frames per second", ""))
