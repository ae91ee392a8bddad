"""The survey of other engines: workers in processes of their own, comparison, what is missing, the table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import numpy as np
import pytest
from export_toys import checkpoint, one_torch_thread  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradseg.base.errors import GradsegError
from gradseg.benchmarks import engines
from gradseg.benchmarks.common.job import Job, missing
from gradseg.benchmarks.common.process import Worker, WorkerError
from gradseg.benchmarks.common.sources import network_for, write_source
from gradseg.benchmarks.survey import base as engines_base
from gradseg.models.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("survey") / "network"
    job, facts = write_source("dg4-star-light", (64, 96), folder)
    assert facts["weights"] == "random weights" and facts["id"] == "dg4-star-light"
    return job


def test_a_checkpoint_takes_the_size_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    save_checkpoint(path, checkpoint().network)
    _, facts = write_source(str(path), (32, 48), tmp_path / "files")
    frames = np.load(tmp_path / "files" / "frames.npy")
    assert facts["input_hw"] == [32, 48] and facts["weights"] == str(path) and frames.shape[1:] == (1, 3, 32, 48)
    assert load_checkpoint(tmp_path / "files" / "network.pth").spec.input_hw == (32, 48)


def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime in FP32 and INT8, each in a process; the reference agrees with itself."""
    out = tmp_path / "engines.json"
    arguments = ["dg4-star-light", "--size", "64x96", "--engines", "onnxruntime", "--threads", "1", "--samples", "3"]
    assert engines.main([*arguments, "--json", str(out), "--work", str(tmp_path / "work")]) == 0
    found = json.loads(out.read_text("utf-8"))
    (network,) = found["networks"]
    exact, int8 = network["rows"]
    assert exact["agreement"] == 1.0 and exact["max_difference"] == 0.0 and exact["samples"] == 3
    assert "not_measured" not in int8 and int8["agreement"] > 0.5 and int8["file_bytes"] < exact["file_bytes"]
    assert found["missing"] == {} and found["conditions"]["threads"] == 1
    assert "1.00x" in capsys.readouterr().out


def test_missing_packages_are_named_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = SimpleNamespace(
        NEEDS=("no_such_package_here", "json"), FILES={"fp32": "", "int8": ""}, PIP="pip install it"
    )
    assert missing(absent.NEEDS) == ["no_such_package_here"]
    monkeypatch.setattr(engines, "engine", lambda name: absent)
    rows, pip = engines.planned(["ncnn"], {}, tmp_path)
    assert pip == {"ncnn": "pip install it"}
    assert [row["not_measured"] for row in rows] == 2 * ["not installed (no_such_package_here): pip install it"]
    network: Dict[str, Any] = {"id": "n", "gmac": 1.0, "weights": "w", "rows": rows}
    assert "not measured: not installed" in engines.table(network)


def test_every_engine_has_what_the_survey_asks_for() -> None:
    for name in engines_base.ENGINES:
        module = engines_base.engine(name)
        assert module.PIP.startswith("pip install ") and "fp32" in module.FILES and module.NEEDS
        assert callable(module.build) and callable(module.Network)


@pytest.mark.parametrize(
    "name",
    ["openvino", *(pytest.param(each, marks=pytest.mark.slow) for each in ("ncnn", "mnn", "litert", "executorch"))],
)
def test_engines_that_are_installed_agree(name: str, source: Job) -> None:
    lacking = missing(engines_base.engine(name).NEEDS)
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}: {engines_base.engine(name).PIP}")
    rows: List[engines.Row] = [{"engine": "onnxruntime", "precision": "fp32"}, {"engine": name, "precision": "fp32"}]
    engines.measure_network(source, rows, {}, 2)
    assert "not_measured" not in rows[1], rows[1]
    assert rows[1]["agreement"] > 0.999 and rows[1]["p50_ms"] > 0 and rows[1]["version"]


def test_a_python_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    rows, _ = engines.planned(["onnxruntime"], {"onnxruntime": "/nowhere/python"}, tmp_path)
    assert [row["not_measured"] for row in rows] == 2 * ["/nowhere/python: No such file or directory"]


def test_a_worker_that_dies_or_does_not_answer_is_a_reason(tmp_path: Path) -> None:
    def child(code: str) -> Worker:
        return Worker(tmp_path / "messages.txt", command=[sys.executable, "-c", f"import os, sys\n{code}"])

    dies, words = child("sys.stdin.readline()\nsys.stderr.write('out of luck')\nos.abort()"), "out of luck"
    with dies, pytest.raises(WorkerError, match=f"crashed during build: signal SIGABRT; its last words: {words}"):
        dies.ask("build", 60)
    with child("sys.stdin.readline()\nsys.stdin.readline()") as process:
        with pytest.raises(WorkerError, match=r"no answer to open within 0 s"):
            process.ask("open", 0.01)
        with pytest.raises(WorkerError, match="crashed during run"):
            process.ask("run", 5)


def test_what_an_engine_refuses_is_a_reason(source: Job, tmp_path: Path) -> None:
    with Worker(tmp_path / "messages.txt", python=sys.executable) as process:
        assert process.ask("missing", 60, packages=["onnxruntime", "no_such_package"]) == {
            "missing": ["no_such_package"]
        }
        files = {"frames": str(source.folder / "frames.npy"), "kept": str(tmp_path / "l.npy")}
        asked = {"job": replace(source, folder=tmp_path).to_dict(), "variant": "onnxruntime fp32", **files}
        with pytest.raises(WorkerError, match=r"NoSuchFile|logits\.onnx"):
            process.ask("open", 60, module=engines_base.__name__, **asked)


logits = arrays(np.float32, (1, 3, 4, 5), elements=st.floats(-9, 9, width=16), unique=True)


@given(logits)
def test_channels_last_logits_are_the_same_logits(values: np.ndarray[Any, Any]) -> None:
    same = {"agreement": 1.0, "max_difference": 0.0}
    assert engines.compared(values, values) == same
    assert engines.compared(np.moveaxis(values, 1, -1), values) == same
    assert engines.compared(values[:, ::-1], values)["agreement"] < 1.0 or (values.argmax(1) == 1).all()


def test_wrong_logits_are_said_to_be() -> None:
    values = np.zeros((1, 3, 4, 5), np.float32)
    assert "not finite" in engines.compared(values * np.nan, values)["note"]
    assert engines.compared(values[:, :2], values)["note"] == "gives [1, 2, 4, 5] instead of [1, 3, 4, 5]"


def test_the_table_puts_the_fastest_first() -> None:
    def row(name: str, p50: float) -> engines.Row:
        return {"engine": name, "precision": "fp32", "p50_ms": p50, "p90_ms": p50, "agreement": 1.0, "version": "v"}

    rows = [row("onnxruntime", 10.0), row("ncnn", 5.0), {"engine": "mnn", "precision": "int8", "not_measured": "why"}]
    lines = engines.table({"id": "n", "gmac": 1.0, "weights": "w", "rows": rows}).splitlines()
    assert "ncnn" in lines[2] and "2.00x" in lines[2] and "1.00x" in lines[3] and lines[4].endswith("not measured: why")


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("x", "utf-8")
    for arguments, message in (
        (["--engines", "tvm"], "unknown engine 'tvm'; expected some of onnxruntime, openvino, ncnn"),
        (["--python", "tvm=/usr/bin/python3"], "unknown engine 'tvm'"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--work", str(tmp_path)], "is not empty; name a new folder"),
    ):
        with pytest.raises(GradsegError, match=message):
            engines.parse(arguments)
    with pytest.raises(GradsegError, match=r"net.onnx: expected a checkpoint \(.pth\) or one of"):
        network_for("net.onnx", (64, 96))
    assert engines.parse(["--engines", "ncnn"]).names == ["onnxruntime", "ncnn"]
