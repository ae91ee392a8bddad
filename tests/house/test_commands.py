"""The front door: every script as a sub-command, its --help without a heavy import, models by name, what is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from device_files import FILES, relative
from places import ROOT
from runtime_toys import deployment_onnx

from gradseg import commands
from gradseg.__main__ import dispatch
from gradseg.base import packages
from gradseg.base.errors import GradsegError
from gradseg.commands import COMMANDS, command, module_of, typed
from gradseg.runtime import Segmenter
from gradseg.runtime.engines import shipped

DOORS = ("train", "export", "calibration", "runtime", "benchmarks")
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "openvino",
    "tensorrt",
    "rich",
    "lightning_fabric",
    "onnxsim",
    "jinja2",
)
KINDS = (".onnx", ".xml", ".gsn", ".pth", ".plan", ".engine", "name")
SCRIPT = """
import contextlib, io, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocker())
from gradseg.__main__ import dispatch
from gradseg.commands import COMMANDS
assert not {"numpy", "cv2", "argparse"} & set(sys.modules)
for words in COMMANDS:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            dispatch([*words.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0, words
    assert said.getvalue().startswith("usage: gradseg " + words + " "), said.getvalue()
    assert "python " + COMMANDS[words][0] not in said.getvalue(), words
assert not set(HEAVY) & set(sys.modules)
"""


def test_every_script_at_a_door_is_a_command() -> None:
    scripts = [relative(path) for path in FILES if path.parent.parent == ROOT and path.parent.name in DOORS]
    scripts = [name for name in scripts if '__name__ == "__main__"' in (ROOT / name).read_text("utf-8")]
    assert sorted(scripts) == sorted(path for path, _ in COMMANDS.values())
    assert 'gradseg = "gradseg.__main__:main"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_help_of_everything_imports_nothing_heavy() -> None:
    code = f"HEAVY = {HEAVY!r}\n{SCRIPT}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class _Parsed(Exception):  # noqa: N818 no error
    pass


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser, caught when it is about to parse."""
    found: dict[str, argparse.ArgumentParser] = {}

    def caught(self: argparse.ArgumentParser, *_: object) -> None:
        found[self.prog] = self
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        for script, _ in COMMANDS.values():
            with pytest.raises(_Parsed):
                importlib.import_module(module_of(script)).main([])
    assert set(found) == {f"gradseg {words}" for words in COMMANDS}
    return found


def test_every_option_says_what_it_is(parsers: dict[str, argparse.ArgumentParser]) -> None:
    for name, parser in parsers.items():
        for action in parser._actions:
            where = f"{name} {action.option_strings or action.dest}"
            assert action.help, where
            if {"-o", "--out"} & set(action.option_strings):
                assert re.match(r"(file|folder)\b", action.help), where
            if "--engine" in action.option_strings:
                assert all(kind in action.help for kind in KINDS), where
        assert parser.format_help()  # no stray % in a text


def test_usage_shows_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, expected in (
        ("runtime/run_video.py", "python runtime/run_video.py"),
        ("/usr/bin/gradseg", "gradseg run"),
        ("/x/gradseg/__main__.py", "python -m gradseg run"),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert typed("runtime/run_video.py") == expected


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert dispatch(words) == 0
        said = capsys.readouterr().out
        assert all(f"  {name} " in said for name in COMMANDS)
    assert dispatch(["export", "--help"]) == 0
    said = capsys.readouterr().out
    assert "  export trt " in said and "run" not in said.split()
    assert dispatch(["--version"]) == 0 and re.match(r"gradseg \d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["rnu", "cam0"], "run"),
        (["export", "onyx"], "export onnx"),
        (["expor", "onnx"], "export"),
        (["bench", "latencies"], "bench latency"),
        (["qqq"], None),
    ],
)
def test_unknown_words(words: list[str], meant: str | None) -> None:
    with pytest.raises(GradsegError, match="no such command") as caught:
        dispatch(words)
    assert caught.value.exit_code == 2 and ("did you mean" in str(caught.value)) == (meant is not None)
    assert meant is None or f"did you mean gradseg {meant}? " in str(caught.value)


def test_suggested_commands_fit_where_the_user_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("my plan.onnx", "-o", Path("a'b.plan"), "--mean", "A,B,C")
    monkeypatch.chdir(ROOT)
    assert command("export/to_trt.py", *words).startswith("python export/to_trt.py 'my plan.onnx' -o ")
    assert shlex.split(command("export/to_trt.py", *words))[2:] == [str(word) for word in words]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(command("export/to_trt.py"))[1] == str(ROOT / "export" / "to_trt.py")
    monkeypatch.setattr(commands, "ROOT", tmp_path)  # no scripts there: an installed wheel
    assert command("export/to_trt.py", "a b").startswith("gradseg export trt 'a b'")


def test_the_install_that_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert shlex.split(packages.install("train")) == ["pip", "install", "-e", ".[train]"]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(packages.install("train")) == ["pip", "install", "-e", f"{ROOT}[train]"]
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    listed = ["numpy", "torch<3,>=2.4; python_version >= '3.10' and extra == \"train\"", "onnx>=1; extra == 'export'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: listed)
    assert shlex.split(packages.install("train", "torch")) == ["pip", "install", "torch<3,>=2.4"]
    assert packages.install("none", "one", "two") == "pip install one two"
    monkeypatch.setattr(packages, "OLDEST", (99, 0))
    assert packages.install("train").startswith("use Python 99.0 or newer, this is 3.")
    assert packages.install("export", "onnx", "onnxruntime") == "pip install onnx onnxruntime", "on a device"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("torch", "fit dg2 --out {d}/run"),
        ("torch", "finetune {d}/a.pth --data scenes: --out {d}/run --target tidl"),
        ("torch", "export onnx {d}/a.pth"),
        ("onnx", "export ort {d}/a.pth"),
        ("onnx", "export native {d}/a.pth"),
        ("openvino", "export openvino {d}/a.pth"),
        ("onnx", "tune {d}/a.pth --data scenes:frames=2"),
        ("onnx", "calibrate {d}/a.pth --data scenes:"),
        ("onnxruntime", "sensitivity {d}/a.pth --data scenes:"),
        ("matplotlib", "sensitivity {d}/a.pth --data scenes: --plot {d}/a.png"),
        ("matplotlib", "report {d}/a.pth --data scenes: --json {d}/a.json --html {d}/a.html"),
        ("torch", "run scenes: --engine {d}/a.pth"),
        ("onnxruntime", "run scenes: --engine {d}/a.onnx"),
        ("openvino", "run scenes: --engine {d}/a.xml"),
        ("torch", "bench models"),
        ("torch", "bench engines"),
        ("onnx", "bench roofline"),
        ("torch", "bench versus --work {d} --models dg2"),
        ("onnx", "bench calibration --model {d}/a.pth --data scenes:"),
        ("torch", "bench gpu --prepare {d}/pack"),
        ("onnx", "bench demo --checkpoint {d}/a.pth --out {d}/demo"),
    ],
)
def test_what_is_missing_is_said_with_its_install(
    missing: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.pth", "a.onnx", "a.xml"):
        (tmp_path / name).write_text("nothing is read before it is known that it can be")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    with pytest.raises(GradsegError, match=rf"\b({missing}|ONNX Runtime)\b.*: pip install -e \S+") as caught:
        dispatch(words.format(d=tmp_path).split())
    assert caught.value.exit_code == 3


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one model in both forms; only the ONNX can be opened."""
    folder = tmp_path / "weights"
    folder.mkdir()
    deployment_onnx(folder / f"{shipped.DEFAULT}.onnx")
    (folder / f"{shipped.DEFAULT}.gsn").touch()
    monkeypatch.setattr(shipped, "WEIGHTS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradseg.runtime.native.library.native_isa", lambda: None)


def test_a_shipped_model_in_the_form_that_runs_here(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradseg.runtime.native.library.native_isa", lambda: "avx2")
    native, why = shipped.shipped_or_given(shipped.DEFAULT)
    assert native == weights / f"{shipped.DEFAULT}.gsn" and "avx2" in why
    assert shipped.shipped_or_given(shipped.DEFAULT, "cuda")[0].suffix == ".onnx"
    without_native(monkeypatch)
    assert shipped.shipped_or_given(shipped.DEFAULT)[0].suffix == ".onnx"
    with Segmenter(shipped.DEFAULT) as segmenter:
        assert segmenter.engine.name == str(weights / f"{shipped.DEFAULT}.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GradsegError, match=r"neither .* nor ONNX Runtime is here: pip install .*\[ort\]") as caught:
        shipped.shipped_or_given(shipped.DEFAULT)
    assert caught.value.exit_code == 3
    Path(shipped.DEFAULT).touch()  # an existing file of that name wins
    assert shipped.shipped_or_given(shipped.DEFAULT) == (Path(shipped.DEFAULT), "")
    assert shipped.shipped_or_given("other.onnx") == (Path("other.onnx"), "")


def test_run_without_an_engine(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_native(monkeypatch)
    assert dispatch(["run", "scenes:size=64x64,frames=3"]) == 0
    said = capsys.readouterr()
    assert f"engine: {weights / shipped.DEFAULT}.onnx (FP32 in ONNX Runtime: the native engine's" in said.err
    assert "3 frames done" in said.out
    assert dispatch(["bench", "latency", "--engine", shipped.DEFAULT, "--samples", "1", "--frame-size", "32x32"]) == 0


def test_models(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (weights / f"{shipped.DEFAULT}.gsn").unlink()
    assert dispatch(["models"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"(?m)^  dg2-star-light +279,760 +4\.029  .*2 groups, light decoder$", said)
    assert re.search(rf"(?m)^  {shipped.DEFAULT}\.onnx +0\.00 MB +\d+x\d+  {re.escape(str(weights))}", said)
    assert "classes: " in said and str(ROOT / "assets" / "dg2-star-light.pth") in said
