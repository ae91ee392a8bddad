"""The survey of other engines: workers in processes of their own, comparison, what is missing, the table."""

from __future__ import annotations

import json
import sys
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
from gradseg.benchmarks.common.sources import network_for, write_source
from gradseg.benchmarks.survey import base as engines_base
from gradseg.benchmarks.survey import process as engines_process
from gradseg.benchmarks.survey.process import EngineProcess, WorkerFailed
from gradseg.models.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survey") / "network"
    facts = write_source("dg4-star-light", (64, 96), folder)
    assert facts["weights"] == "random weights" and facts["id"] == "dg4-star-light"
    return folder / "source.json"


def test_a_checkpoint_takes_the_size_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    save_checkpoint(path, checkpoint().network)
    facts = write_source(str(path), (32, 48), tmp_path / "files")
    frames = np.load(tmp_path / "files" / "frames.npy")
    assert facts["input_hw"] == [32, 48] and facts["weights"] == str(path) and frames.shape[1:] == (3, 32, 48)
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


def test_missing_packages_are_named_with_their_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = SimpleNamespace(NEEDS=("no_such_package_here", "json"), PRECISIONS=("fp32", "int8"), PIP="pip install it")
    assert engines_base.missing(absent) == ("no_such_package_here",)
    monkeypatch.setattr(engines, "engine", lambda name: absent)
    monkeypatch.setattr(engines, "probe", lambda *_: {"missing": ["no_such_package_here"]})
    rows, pip = engines.planned(["ncnn"], {}, source, tmp_path)
    assert pip == {"ncnn": "pip install it"}
    assert [row["not_measured"] for row in rows] == 2 * ["not installed (no_such_package_here): pip install it"]
    network: Dict[str, Any] = {"id": "n", "gmac": 1.0, "weights": "w", "rows": rows}
    assert "not measured: not installed" in engines.table(network)


def test_every_engine_has_what_the_survey_asks_for() -> None:
    for name in engines_base.ENGINES:
        module = engines_base.engine(name)
        assert module.PIP.startswith("pip install ") and "fp32" in module.PRECISIONS and module.NEEDS
        assert callable(module.convert) and callable(module.Runner)


@pytest.mark.parametrize(
    "name",
    ["openvino", *(pytest.param(each, marks=pytest.mark.slow) for each in ("ncnn", "mnn", "litert", "executorch"))],
)
def test_engines_that_are_installed_agree(name: str, source: Path, tmp_path: Path) -> None:
    lacking = engines_base.missing(engines_base.engine(name))
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}: {engines_base.engine(name).PIP}")
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "source.json").write_text(source.read_text("utf-8"), "utf-8")
    rows: List[engines.Row] = [{"engine": "onnxruntime", "precision": "fp32"}, {"engine": name, "precision": "fp32"}]
    engines.measure_network(folder, rows, {}, 1, 2)
    assert "not_measured" not in rows[1], rows[1]
    assert rows[1]["agreement"] > 0.999 and rows[1]["p50_ms"] > 0 and rows[1]["version"]


def test_a_worker_that_dies_or_does_not_answer_is_a_reason(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WorkerFailed, match=r"nowhere/python: No such file"):
        EngineProcess("onnxruntime", "fp32", source, tmp_path, "/nowhere/python")
    script = tmp_path / "worker.py"
    script.write_text("import sys, os\nsys.stdin.readline()\nsys.stderr.write('out of luck')\nos.abort()\n", "utf-8")
    monkeypatch.setattr(engines_process, "SCRIPT", script)
    process = EngineProcess("onnxruntime", "fp32", source, tmp_path)
    with pytest.raises(WorkerFailed, match="its process ended during convert: SIGABRT; its last words: out of luck"):
        process.ask("convert", 60)
    process.close()
    script.write_text("import sys\nsys.stdin.readline()\nsys.stdin.readline()\n", "utf-8")
    process = EngineProcess("onnxruntime", "fp32", source, tmp_path)
    with pytest.raises(WorkerFailed, match=r"no answer to open within 0 s"):
        process.ask("open", 0.01)
    with pytest.raises(WorkerFailed, match="its process ended during run"):
        process.ask("run", 5)


def test_what_an_engine_refuses_is_a_reason(source: Path, tmp_path: Path) -> None:
    process = EngineProcess("onnxruntime", "fp32", source, tmp_path, sys.executable)
    try:
        assert process.ask("hello", 60) == {"missing": [], "precisions": ["fp32", "int8"]}
        with pytest.raises(WorkerFailed, match=r"NoSuchFile|nothing\.onnx"):
            process.ask("open", 60, path=str(tmp_path / "nothing.onnx"), threads=1, logits=str(tmp_path / "l.npy"))
    finally:
        process.close()
        process.close()


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
