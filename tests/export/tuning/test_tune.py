"""export/tune.py end to end at a small size: what it writes, repeats, resumes, refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import cv2
import numpy as np
import onnx
import pytest
from export_toys import checkpoint, exported, frames, one_torch_thread  # noqa: F401
from foreign_toys import DESCRIBED, toy
from places import ROOT

from gradseg.base.errors import GradsegError
from gradseg.export import tune
from gradseg.export.tuning import candidates as tune_candidates
from gradseg.export.tuning import measure as tune_measure
from gradseg.export.tuning import process as tune_process
from gradseg.export.tuning import run as tune_run
from gradseg.export.tuning.bench import Workbench
from gradseg.export.tuning.candidates import BASE, FIRST, Candidate
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models.checkpoint import save_checkpoint
from gradseg.runtime.engines.open import open_engine

DATA = "scenes:frames=3,size=64x96,seed=9"
CALIB = "scenes:frames=2,size=64x96,seed=5"
FEW = (BASE, "ort-int8-cpu", "ort-fp32-rows-head")
VOID = ("meta", "img", "rect", "line")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    save_checkpoint(folder / "net.pth", checkpoint().network)
    onnx.save(exported(), str(folder / "net.onnx"))
    onnx.save(toy("unet"), str(folder / "unet.onnx"))
    (folder / "frames").mkdir()
    for index, batch in enumerate(frames()):
        cv2.imwrite(str(folder / "frames" / f"{index}.png"), batch[0])
    return folder


@pytest.fixture(autouse=True, scope="module")
def same_code() -> Iterator[None]:
    """Who edits a file while the tests run makes no other version of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "code_hash", lambda: "0")
        yield


@pytest.fixture()
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Few rounds and only some candidates."""
    monkeypatch.setattr(tune_measure, "ROUNDS", 3)
    listed = tune_candidates.candidates

    def only(*names: str) -> None:
        def some(sources: Any) -> List[Candidate]:
            return [each for each in listed(sources) if each.name in (names or FEW)]

        monkeypatch.setattr(tune_run, "candidates", some)

    only()
    return only


def call(out: Path, model: Path, *arguments: object, data: str = DATA) -> int:
    words = [model, "--data", data, "--calib", CALIB, "--calib-frames", 2, "--threads", 1, "-o", out, *arguments]
    return tune.main([str(word) for word in words])


def found_in(out: Path) -> Dict[str, Any]:
    found = json.loads((out / "tune.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


class Checker(HTMLParser):
    """Every tag that is opened is closed, and nothing is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: List[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, name: str, attributes: List[Tuple[str, Any]]) -> None:
        assert name not in ("script", "link", "iframe") and not {"src", "href"} & {key for key, _ in attributes}
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        if name not in VOID:
            assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- everything there is, once


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All candidates that can run here, from a checkpoint."""
    out = tmp_path_factory.mktemp("whole") / "tuned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_measure, "ROUNDS", 2)
        assert call(out, files / "net.pth") == 0
    return out


def test_every_candidate_is_accounted_for(whole: Path) -> None:
    found = found_in(whole)
    names = {each["name"]: each for each in found["candidates"]}
    assert {BASE, "torch-fp32", "ort-int8-cpu", "ort-int8-groups", "native-int8", "openvino-int8"} <= set(names)
    for each in names.values():
        assert each["state"] in ("measured", "unavailable", "refused"), each
        assert each["outcome"] and (each["state"] != "unavailable" or each["outcome"].startswith("not here: "))
        if each["state"] == "measured":
            assert each["p99_ms"] >= each["p50_ms"] > 0 and each["samples"] >= 3 and each["backend"]
            assert each["size_bytes"] > 1000 and each["memory_bytes"] > 1e6 and each["labels_as_fp32"] > 0.5
            assert 0 < each["miou"] < 1 and each["drop_points"] is not None
        if each["precision"] == "fp32" and each["state"] == "measured":
            assert each["labels_as_fp32_near_ties_aside"] >= 0.99999
    assert {"ONNX Runtime", "PyTorch"} <= {each["engine"] for each in names.values() if each["state"] == "measured"}
    assert [each["name"] for each in names.values() if each["won"]] == [found["candidate"]]
    assert found["complete"] and found["measured_now"] and found["data"]["labelled"] and found["data"]["frames"] == 3
    known = found["conditions"]
    assert (
        known["device"]["cpu"] and known["versions"]["onnxruntime"] and "others_share" in known and "governor" in known
    )
    assert known["command"].startswith("python export/tune.py ")


def test_the_engine_that_won_runs_and_keeps_the_labels(whole: Path) -> None:
    found = found_in(whole)
    assert all((whole / name).is_file() for name in found["files"])
    engine = open_engine(whole / found["engine"], found["threads"])
    reference = OnnxRunner(exported().SerializeToString(), threads=1)
    same = [np.mean(engine.infer(batch) == reference.first(batch)) for batch in frames()]
    engine.close()
    assert np.mean(same) > (0.9999 if found["precision"] == "fp32" else 0.9)


def test_int8_is_never_chosen_where_it_is_slower(whole: Path) -> None:
    found = found_in(whole)
    floats = [
        e for e in found["candidates"] if e["precision"] == "fp32" and e["over_winner"] and e["state"] == "measured"
    ]
    if found["precision"] != "fp32":
        assert all(each["over_winner"]["ratio"] > 1 for each in floats)


def test_the_page_is_whole_and_needs_nothing_else(whole: Path) -> None:
    text = (whole / "tune.html").read_text("utf-8")
    page = Checker(text)
    found = found_in(whole)
    for each in found["candidates"]:
        assert each["title"] in page.text and each["outcome"] in page.text
    assert found["verdict"][0] in page.text and "asleep while another one ran" in page.text
    assert "http" not in re.sub(r'"command".*', "", text)


def test_the_table_fits_a_page_of_1280_pixels(whole: Path) -> None:
    """Names and reasons wrap; what does not is so short that the rest of the width, about 680 pixels, holds it."""
    text = (whole / "tune.html").read_text("utf-8")
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text)]
    assert len({len(row) for row in rows}) == 1
    assert all('class="words"' in row[-1] for row in rows) and "th { white-space: normal; }" in text
    figures = [row[1:-1] for row in rows[1:]]
    words = [
        [*map(len, rows[0][at].split()), *(len(row[at - 1]) for row in figures)] for at in range(1, len(rows[0]) - 1)
    ]
    assert sum(map(max, words)) <= 70
    assert "white-space: pre-wrap" in text, "the conditions"


# ---- once more, and after a kill


def test_a_repeat_is_quick_and_says_so(
    files: Path, tmp_path: Path, quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, files / "net.onnx") == 0
    first = found_in(tmp_path)
    said = capsys.readouterr().out
    assert "nothing is new" not in said and f"wrote {tmp_path}/engine.onnx" in said
    assert "run it: python runtime/run_video.py --engine" in said and "--threads 1 SOURCE" in said

    def never(*_: Any) -> None:
        raise AssertionError("a repeat starts no process and reads no frames")

    with monkeypatch.context() as patch:
        patch.setattr(tune_process.Worker, "__init__", never)
        patch.setattr(tune_run, "Judge", never)
        assert call(tmp_path, files / "net.onnx", "--max-drop", "3") == 0
    again = found_in(tmp_path)
    assert "nothing is new since it was measured" in capsys.readouterr().out
    assert again["candidate"] == first["candidate"] and not again["measured_now"] and again["max_drop"] == 3
    assert [e["p50_ms"] for e in again["candidates"]] == [e["p50_ms"] for e in first["candidates"]]

    assert call(tmp_path, files / "net.onnx", "--force") == 0
    assert found_in(tmp_path)["measured_now"]


def test_other_data_is_measured_anew(
    files: Path, tmp_path: Path, quick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(BASE)
    assert call(tmp_path, files / "net.onnx") == 0
    assert call(tmp_path, files / "net.onnx", data=str(files / "frames")) == 0
    assert "was of another data: measured anew" in capsys.readouterr().out
    assert found_in(tmp_path)["data"]["frames"] == 4


@pytest.mark.parametrize("at", [2, 4])
def test_ctrl_c_keeps_what_was_found(
    at: int,
    files: Path,
    tmp_path: Path,
    quick: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, opened = Workbench.running, []

    def stops(self: Workbench, record: Any) -> Any:
        opened.append(record.name)
        if len(opened) == at:
            raise KeyboardInterrupt
        return real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "running", stops)
        assert call(tmp_path, files / "net.onnx") == 130
    said = capsys.readouterr()
    assert said.err == f"interrupted; what was found so far is in {tmp_path / 'work'}, the same command goes on there\n"
    assert not (tmp_path / "tune.json").exists() and not list(tmp_path.glob("**/*.tmp"))

    measured: List[str] = []
    monkeypatch.setattr(Workbench, "check", check_noting(measured))
    assert call(tmp_path, files / "net.onnx") == 0
    assert measured == list(FEW[at - 1 :]), "those that were looked at before are not looked at again"
    assert all(each["rounds"] for each in found_in(tmp_path)["candidates"] if each["won"])


def check_noting(names: List[str]) -> Callable[..., None]:
    real = Workbench.check

    def noting(self: Workbench, record: Any, running: Any) -> None:
        names.append(record.name)
        real(self, record, running)

    return noting


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, where processes end with their parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_process_and_goes_on(number: int, files: Path, tmp_path: Path, quick: Any) -> None:
    words = ["net.onnx", "--data", DATA, "--calib", CALIB, "--calib-frames", "2", "--threads", "1", "-o", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "export" / "tune.py"), *words],
        cwd=files,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    mark = tmp_path / "work" / f"candidate-{BASE}.json"
    while '"screening": []' in (mark.read_text() if mark.exists() else '"screening": []'):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        with_timeout(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert said.startswith("interrupted; ") and said.count("\n") == 1
    assert children and all(ended(int(child)) for child in children)
    assert call(tmp_path, files / "net.onnx") == 0
    assert found_in(tmp_path)["complete"]


def with_timeout(process: subprocess.Popen[str]) -> None:
    """Waits a little, or until it ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.02)


def ended(pid: int) -> bool:
    """Whether a process, not ours, is gone or goes within a minute."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watched], [], [], 60)[0])
    finally:
        os.close(watched)


def test_damaged_work_is_done_again(
    files: Path, tmp_path: Path, quick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, files / "net.onnx") == 0
    (tmp_path / "work" / f"candidate-{FEW[1]}.json").write_text('{"hash": "')
    (tmp_path / "work" / "sources.json").write_text("")
    (tmp_path / "work" / "session.json").unlink()
    assert call(tmp_path, files / "net.onnx") == 0
    said = capsys.readouterr().out
    assert said.count("damaged, so it is made again") == 2
    assert found_in(tmp_path)["measured_now"]


def test_work_without_its_session_is_told_apart(files: Path, tmp_path: Path, quick: Any) -> None:
    quick(BASE)
    assert call(tmp_path, files / "net.onnx") == 0
    (tmp_path / "work" / "session.json").unlink()
    assert call(tmp_path, files / "net.onnx") == 0
    assert found_in(tmp_path)["data"]["labelled"]


# ---- other networks, other data, little time


def test_a_foreign_network_with_its_own_mean_and_std(
    files: Path, tmp_path: Path, quick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(*FEW, "openvino-fp32", "native-int8")
    assert call(tmp_path, files / "unet.onnx", *DESCRIBED, data=str(files / "frames")) == 0
    said = capsys.readouterr().out
    assert "converted; labels equal to the original ONNX's on" in said
    found = found_in(tmp_path)
    assert found["model"]["arch"] == "foreign" and not found["data"]["labelled"]
    assert "has no labels" in found["data"]["why_no_miou"]
    assert f"There is no mIoU ({files / 'frames'} has no labels)" in Checker((tmp_path / "tune.html").read_text()).text
    names = {each["name"]: each for each in found["candidates"]}
    assert names[BASE]["labels_as_fp32"] == 1.0 and names[BASE]["miou"] is None
    engine = open_engine(tmp_path / found["engine"], 1)
    assert engine.spec.mean == (0.485, 0.456, 0.406) and engine.spec.num_classes == 5
    assert engine.infer(frames()[0]).shape == (1, 64, 96)
    engine.close()


def test_labels_of_other_classes_are_not_used(files: Path, tmp_path: Path, quick: Any) -> None:
    quick(BASE)
    assert call(tmp_path, files / "unet.onnx", *DESCRIBED) == 0
    assert "are of other classes than the network's" in found_in(tmp_path)["data"]["why_no_miou"]
    with pytest.raises(GradsegError, match=r"--max-drop 1: .*other classes.*leave --max-drop out"):
        call(tmp_path, files / "unet.onnx", *DESCRIBED, "--max-drop", "1")


def test_little_time_still_gives_an_engine_and_the_next_run_goes_on(
    files: Path, tmp_path: Path, quick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, files / "net.onnx", "--time-budget", "1") == 0
    said, found = capsys.readouterr().out, found_in(tmp_path)
    assert "the time was over before everything was measured; the same command goes on" in said
    assert found["precision"] == "fp32" and not found["complete"]
    assert "not measured, the time was over: " in "\n".join(found["verdict"])
    assert {each["name"] for each in found["candidates"] if each["samples"]} == {BASE, "ort-int8-cpu"} <= {*FIRST}
    assert call(tmp_path, files / "net.onnx") == 0
    assert found_in(tmp_path)["complete"]


def test_an_engine_that_won_before_does_not_stay(files: Path, tmp_path: Path, quick: Any) -> None:
    quick(BASE)
    tmp_path.joinpath("engine.xml").write_text("old")
    assert call(tmp_path, files / "net.onnx") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.onnx", "tune.html", "tune.json", "work"]


def test_a_library_that_is_not_there_is_a_reason(
    files: Path, tmp_path: Path, quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(BASE, "openvino-fp32", "native-int8", "openvino-bf16")
    monkeypatch.setattr(tune_candidates, "MODULES", {"OpenVINO": "no_such_library", "ONNX Runtime": "onnxruntime"})
    monkeypatch.setenv("GRADSEG_NATIVE_LIBRARY", str(tmp_path / "none.so"))
    assert call(tmp_path, files / "net.onnx") == 0
    said = {each["name"]: each["outcome"] for each in found_in(tmp_path)["candidates"]}
    assert said["openvino-fp32"] == "not here: OpenVINO is not installed here: pip install no_such_library"
    assert said["native-int8"].startswith("not here: the native extension is not built here")
    assert said[BASE] == "won"


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", ""), "--data is needed"),
        (("--data", "cam0"), "a camera does not show the same frames twice"),
        (("--calib", "/dev/video0"), "--calib /dev/video0: a camera"),
        (("--data", "camvid:/nowhere"), "no such folder"),
        (("--calib", "/nowhere.mp4"), "nowhere.mp4"),
        (("--calib", "random"), "refused"),
        (("--max-drop", "-1"), "--max-drop -1: expected points"),
        (("--max-drop", "nan"), "--max-drop nan: expected points"),
        (("--time-budget", "0"), "--time-budget 0: expected seconds"),
        (("--time-budget", "nan"), "--time-budget nan"),
        (("--limit", "0"), "--limit 0"),
        (("--threads", "0"), "--threads 0"),
        (("--size", "5"), "5"),
        (("--size", "64x96"), "--size and --arch are for checkpoints"),
        (("--mean", "0,0,0"), "carries its own spec"),
    ],
)
def test_options_that_cannot_be(files: Path, tmp_path: Path, arguments: Tuple[str, str], message: str) -> None:
    with pytest.raises(GradsegError, match=re.escape(message)) as error:
        call(tmp_path / "out", files / "net.onnx", *arguments)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out" / "tune.json").exists()


def test_models_that_cannot_be(files: Path, tmp_path: Path, quick: Any) -> None:
    with pytest.raises(GradsegError, match="no such file"):
        call(tmp_path / "out", files / "none.onnx")
    (tmp_path / "a.plan").write_text("x")
    with pytest.raises(GradsegError, match=r"expected a checkpoint \(\.pth\) or an ONNX model"):
        call(tmp_path / "out", tmp_path / "a.plan")
    (tmp_path / "a.onnx").write_text("x")
    with pytest.raises(GradsegError, match="truncated or not an ONNX model"):
        call(tmp_path / "out", tmp_path / "a.onnx")
    with pytest.raises(GradsegError, match="is a file; -o names a folder"):
        call(tmp_path / "a.onnx", files / "net.onnx")
    with pytest.raises(GradsegError, match="say what it is with --spec FILE"):
        call(tmp_path / "out", files / "unet.onnx")


def test_int8_models_are_refused(files: Path, tmp_path: Path, quick: Any) -> None:
    quick(BASE, "ort-int8-cpu")
    assert call(tmp_path / "a", files / "net.onnx") == 0
    with pytest.raises(GradsegError, match="is INT8 already; give its FP32 form"):
        call(tmp_path / "b", tmp_path / "a" / "work" / "engines" / "ort-int8-cpu.onnx")


def test_its_own_input_is_not_overwritten(files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "net.onnx", tmp_path / "engine.onnx")
    with pytest.raises(GradsegError, match="would be overwritten by what wins"):
        call(tmp_path, tmp_path / "engine.onnx")


def test_drop_without_labels_is_refused(files: Path, tmp_path: Path, quick: Any) -> None:
    with pytest.raises(GradsegError, match=r"--max-drop 0\.5: .* has no labels"):
        call(tmp_path, files / "net.onnx", "--max-drop", "0.5", data=str(files / "frames"))
