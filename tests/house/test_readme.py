"""The README's commands exist and take the options that it gives them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from places import ROOT

from gradseg.data.specs import SCHEMES
from gradseg.models.spec import ARCHS

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python ")]
SCRIPTS = sorted({line.split()[1] for line in COMMANDS})


def test_there_are_commands_for_every_step() -> None:
    steps = {"train/fit.py", "export/to_onnx.py", "export/to_ort.py", "export/to_trt.py", "runtime/run_video.py"}
    assert steps | {"benchmarks/accuracy.py", "benchmarks/latency.py", "benchmarks/models.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_take_the_options_given(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-1000:]
    for line in COMMANDS:
        words = shlex.split(line)
        if words[1] == script:
            missing = [w for w in words if w.startswith("-") and not re.search(rf"(?<![\w-]){w}(?![\w-])", done.stdout)]
            assert not missing, f"{line}: {missing}"


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", " ".join(BLOCKS)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_files_linked_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_ids_and_schemes_are_all_named() -> None:
    stems = {re.sub(r"(s?)(-star)?(-light)?$", "", arch) if arch.startswith("d") else arch for arch in ARCHS}
    assert all(f"`{stem}`" in README for stem in stems)
    assert all(f"`{scheme}:" in README for scheme in SCHEMES)
