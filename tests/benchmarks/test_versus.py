"""benchmarks/versus.py: turns, workers, what it says of bad input, and its JSON, with pipelines of known speed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from places import TESTS

from gradseg.base.conditions import proc_bytes
from gradseg.base.errors import GradsegError
from gradseg.benchmarks import versus
from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.common.process import Worker, WorkerError
from gradseg.benchmarks.common.turns import SETTLE, TURN, Rounds, take_turns
from gradseg.benchmarks.side_by_side import jobs as versus_jobs
from gradseg.benchmarks.side_by_side import networks
from gradseg.benchmarks.side_by_side.jobs import KINDS, Kind, built, keep, kept, lacking, make_jobs
from gradseg.benchmarks.side_by_side.ours import OwnPipeline
from gradseg.benchmarks.side_by_side.report import page, table
from gradseg.benchmarks.side_by_side.run import Plan, agreement
from gradseg.data.scenes.frames import SceneVideo
from gradseg.models.checkpoint import load_checkpoint, save_checkpoint
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import spec_for
from gradseg.runtime import Segmenter
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.preprocess import Preprocessor, normalised_chw

ECHO = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "crash": print("the last words", file=sys.stderr, flush=True); os._exit(7)
    if asked["do"] == "hang": sys.stdin.read()
    if asked["do"] == "half": print('{"ns": [', end="", flush=True); os._exit(3)
    print(json.dumps({"error": "one line"} if asked["do"] == "fail" else asked), flush=True)
"""


@pytest.fixture(autouse=True)
def unpinned() -> Iterator[None]:
    """The tests' process keeps its cores."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("versus") / "net.pth"
    save_checkpoint(path, SegNetwork(spec_for("dg4-star-light", input_hw=(48, 64))))
    return path


def job_in(folder: Path, checkpoint: Path) -> Job:
    return Job("dg4-star-light", checkpoint, True, folder / "job", 1, "scenes:frames=2", None, input_hw=(48, 64))


# --- turns


class Fake:
    """Counts in nanoseconds, and notes who runs."""

    running: ClassVar[list[str]] = []

    def __init__(self, name: str, order: list[str], fails_in: int = 99) -> None:
        self.name, self.order, self.fails_in, self.turns = name, order, fails_in, 0

    def resume(self) -> None:
        assert not Fake.running
        Fake.running.append(self.name)

    def pause(self) -> None:
        Fake.running.remove(self.name)

    def ask(self, what: str, seconds: float, **request: Any) -> dict[str, Any]:
        assert Fake.running == [self.name] and request["settle"] == SETTLE
        self.order.append(self.name)
        self.turns += 1
        if self.turns == self.fails_in:
            raise WorkerError("crashed", True)
        return {"ns": [[request["start"] + i, 1, 1] for i in range(request["count"])]}


def test_one_at_a_time_back_and_forth(tmp_path: Path) -> None:
    order: list[str] = []
    workers = {name: Fake(name, order) for name in "abc"}
    rounds = Rounds(tmp_path / "r.jsonl", {"of": 1}, keep=False)
    samples, failed = take_turns(workers, 2 * TURN + 1, rounds, lambda line: None)
    assert order == list("abccbaabc") and not failed
    assert all([t[0] for t in times] == list(range(3 * TURN)) for times in samples.values())


def test_one_that_fails_is_left_out_with_the_reason(tmp_path: Path) -> None:
    order: list[str] = []
    workers = {"good": Fake("good", order), "bad": Fake("bad", order, fails_in=2)}
    samples, failed = take_turns(workers, 3 * TURN, Rounds(tmp_path / "r", {}, False), lambda line: None)
    assert set(samples) == {"good"} and failed == {"bad": "in round 2 of 3: crashed"}
    assert order.count("bad") == 2 and len(samples["good"]) == 3 * TURN


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path, order = tmp_path / "r.jsonl", list[str]()
    take_turns({"a": Fake("a", order)}, 2 * TURN, Rounds(path, {"of": 1}, False), lambda line: None)
    with open(path, "a") as stream:
        stream.write('{"a": [[1, 2')  # killed while it wrote
    again = Rounds(path, {"of": 1}, keep=True)
    samples, _ = take_turns({"a": Fake("a", order)}, 3 * TURN, again, lambda line: None)
    assert len(order) == 3 and [times[0] for times in samples["a"]] == list(range(3 * TURN))
    assert len(path.read_text().splitlines()) == 4
    for of, keeps in (({"of": 2}, True), ({"of": 1}, False)):  # another run's; not asked for
        assert Rounds(path, of, keeps).done == []


# --- workers


def echo(tmp_path: Path) -> Worker:
    return Worker(tmp_path / "logs" / "w.txt", command=[sys.executable, "-c", ECHO])


def test_worker_answers_fails_and_crashes(tmp_path: Path) -> None:
    with echo(tmp_path) as worker:
        assert worker.ask("this", 20, x=1) == {"do": "this", "x": 1}
        worker.pause()
        worker.resume()
        with pytest.raises(WorkerError, match=r"^one line$") as failed:
            worker.ask("fail", 20)
        assert not failed.value.ended
        with pytest.raises(
            WorkerError, match="crashed during crash: exit code 7; its last words: the last words"
        ) as crashed:
            worker.ask("crash", 20)
        assert crashed.value.ended
        with pytest.raises(WorkerError, match="crashed"):
            worker.ask("this", 20)


def test_half_an_answer_is_none(tmp_path: Path) -> None:
    with echo(tmp_path) as worker, pytest.raises(WorkerError, match=r"^crashed during half: exit code 3$"):
        worker.ask("half", 20)


def test_worker_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    with echo(tmp_path) as worker:
        worker.ask("started", 20)
        with pytest.raises(WorkerError, match="no answer to hang within 0 s"):
            worker.ask("hang", 0.05)


def test_a_stopped_worker_can_be_ended(tmp_path: Path) -> None:
    worker = echo(tmp_path)
    worker.pause()
    worker.close()
    worker.close()


# --- jobs


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind("x", "m", "v", "", packages=("json", "no_such_package"))
    assert lacking(kind) == "no_such_package not installed: pip install no_such_package (or pip install -e '.[peers]')"
    monkeypatch.setattr(versus_jobs.shutil, "which", lambda name: None)
    assert "apt-get install g++" in lacking(Kind("x", "m", "v", "", compiler=True))
    assert lacking(Kind("x", "m", "v", "", packages=("json",))) == ""


def test_what_is_kept_depends_on_what_it_came_from(tmp_path: Path, checkpoint: Path) -> None:
    job = job_in(tmp_path, checkpoint)
    kind = Kind("gradseg x", "m", "v", "", files=("x.onnx",), ours=True)
    job.folder.mkdir()
    assert not built(job, kind)
    (job.folder / "x.onnx").write_text("x")
    assert not built(job, kind)
    keep(job, kind, "built")
    keep(job, kind, "miou", 0.5)
    assert built(job, kind) and kept(job, kind, "miou") == {"of": versus_jobs.stamp(job, kind), "value": 0.5}
    other = replace(job, calib="scenes:frames=3")
    assert not built(other, kind) and kept(other, kind, "miou") is None
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job


def test_checkpoints_and_tuned_engines(tmp_path: Path, checkpoint: Path) -> None:
    def jobs(*checkpoints: str, tuned: Path | None = None) -> list[Job]:
        return make_jobs(["dg4-star-light", "dg8"], checkpoints, tmp_path, tuned, threads=1)

    named, untrained = jobs(f"dg4-star-light={checkpoint}")
    assert named.checkpoint == checkpoint and named.trained and not untrained.trained
    assert untrained.checkpoint == untrained.folder / "untrained.pth"
    for text in ("dg4-star-light", f"erfnet={checkpoint}"):
        with pytest.raises(GradsegError, match="write NAME=PATH"):
            jobs(text)
    tuned = tmp_path / "tuned"
    with pytest.raises(GradsegError, match="no such folder"):
        jobs(tuned=tuned)
    (tuned / "dg8").mkdir(parents=True)
    (tuned / "dg8" / "engine.gsn").touch()
    with pytest.raises(GradsegError, match="no engine of dg4-star-light"):
        jobs(tuned=tuned)
    (tuned / "dg4-star-light.xml").touch()
    assert [job.tuned and job.tuned.suffix for job in jobs(tuned=tuned)] == [".xml", ".gsn"]


def test_the_dense_network_is_shipped(tmp_path: Path) -> None:
    (job,) = make_jobs(["d-star-light"], [], tmp_path, None, threads=1)
    assert job.trained and load_checkpoint(job.checkpoint).spec.arch == "d-star-light"


def test_untrained_weights_are_made_once_and_said(tmp_path: Path, checkpoint: Path) -> None:
    job = replace(job_in(tmp_path, tmp_path / "job" / "untrained.pth"), trained=False)
    found = networks.prepare(job)
    before = job.checkpoint.read_bytes()
    assert networks.prepare(job) == found and job.checkpoint.read_bytes() == before
    assert networks.spec_of(job).input_hw == (48, 64) and len(found["classes"]) == 11
    with pytest.raises(GradsegError, match="is of architecture dg4-star-light, not erfnet"):
        networks.prepare(replace(job, model="erfnet", checkpoint=checkpoint, trained=True))


# --- the script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "0"], "--frames must be at least 1"),
        (["--models", "resnet"], "--models resnet: unknown architecture"),
        (["--pipelines", "caffe"], "--pipelines 'caffe': unknown; known: pytorch eager"),
        (["--data", "scenes:"], "write camvid:DIR"),
        (["--data", "camvid:/no/such"], "no train/ and val/"),
        (["--plot", "p.gif"], "must end in .png or .svg"),
        (["--threads", "999"], "this process may use"),
        (["--checkpoint", "x"], "write NAME=PATH"),
        (["--checkpoint", "erfnet=/no/such.pth"], "/no/such.pth: no such file"),
        (["--tuned", "/no/such"], "--tuned /no/such: no such folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GradsegError, match=message) as caught:
        versus.main([*arguments, "--work", str(tmp_path / "work")])
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_a_whole_run_with_pipelines_of_known_speed(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS / "toys"))
    toys = [
        Kind("onnxruntime tutorial", "versus_toys", "slow", "https://…", files=("toy.txt",)),
        Kind("gradseg tuned", "versus_toys", "fast", "", ours=True),
        Kind("absent", "versus_toys", "absent", ""),
        Kind("late", "versus_toys", "late", ""),
        Kind("missing", "versus_toys", "fast", "", packages=("no_such_package",)),
    ]
    job = job_in(tmp_path, checkpoint)
    val = "scenes:frames=2,size=48x64"
    plan = Plan([job], toys, "scenes:size=60x80,frames=4", 2 * TURN, val, 1, tmp_path, ceilings={"fp32": 100.0})
    result = versus.measure(plan)
    json.dumps(result, allow_nan=False)
    assert set(result) == {"pipelines", "ratios", "conditions"}
    for row in result["pipelines"]:
        assert set(row) == {"name", "model", "p50_ms", "p99_ms", "stages_ms", "miou"}
        assert row["model"] == "dg4-star-light" and 0 <= row["miou"] < 1
    assert {row["name"]: row["p50_ms"] for row in result["pipelines"]} == {
        "onnxruntime tutorial": pytest.approx(53),
        "gradseg tuned": pytest.approx(13),
    }
    stages = result["pipelines"][1]["stages_ms"]
    assert stages == {"preprocess": pytest.approx(2), "network": pytest.approx(10), "postprocess": pytest.approx(1)}
    reasons = {each["name"]: each["reason"] for each in result["conditions"]["unavailable"]}
    assert reasons["absent"] == "ValueError: no such thing as this"
    assert (
        "crashed during turn: exit code 11" in reasons["late"] and "pip install no_such_package" in reasons["missing"]
    )
    ratio = result["ratios"]["dg4-star-light: onnxruntime tutorial / gradseg"]
    assert ratio["value"] == pytest.approx(53 / 13) and ratio["needed"] is None
    frames = np.load(tmp_path / "frames.npy")
    files = [job.folder / f"{name}.labels.npy" for name in ("gradseg-tuned", "onnxruntime-tutorial")]
    assert (np.load(files[0]) == frames[..., 0] // 32).all() and agreement(*files) == 1.0
    known = result["conditions"]
    assert {"device", "threads", "versions", "commit", "models", "samples"} <= set(known)
    assert known["samples"] == dict.fromkeys(known["pipelines"], 2 * TURN)
    assert "53.0" in table(result) and "<img" in page(result, plan.ceilings)
    assert "building onnxruntime tutorial | dg4-star-light" in capsys.readouterr().err
    again = versus.measure(replace(plan, resume=True))
    said = capsys.readouterr().err
    assert "building" not in said and "mIoU of onnxruntime" not in said  # kept from the run before
    assert again["pipelines"][0]["miou"] == result["pipelines"][0]["miou"]


def test_tutorials_see_what_gradseg_sees() -> None:
    from gradseg.benchmarks.side_by_side.peers_tutorial import postprocess, preprocess

    frame = SceneVideo((60, 80), 1).frame(0).image
    spec = spec_for("dg4-star-light", input_hw=(48, 64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    for each in (spec, replace(spec, color_order="bgr"), spec_for("dg4-star-light", input_hw=(48, 64))):
        ours = normalised_chw(Preprocessor((48, 64))(frame), each)
        np.testing.assert_allclose(preprocess(frame, each), ours, atol=2e-6)
    logits = np.random.default_rng(0).normal(size=(1, 5, 48, 64)).astype(np.float32)
    labels = postprocess(logits, (48, 64))
    assert labels.dtype == np.uint8 and (labels == logits[0].argmax(0)).all()
    assert postprocess(logits, (60, 80)).shape == (60, 80)


def test_gradsegs_own_pipeline_is_the_loops_step(checkpoint: Path) -> None:
    pipeline = OwnPipeline(open_engine(checkpoint, 1))
    assert (pipeline.engine, pipeline.precision) == ("torch", "fp32")
    with Segmenter(checkpoint) as segmenter:
        for size in ((60, 80), (48, 64), (60, 80)):
            frame = SceneVideo(size, 1).frame(0).image
            labels, times = pipeline.run(frame)
            assert (labels == segmenter(frame)).all() and min(times) >= 0


@pytest.mark.parametrize("name", ["onnxruntime tutorial", "openvino tutorial", "ncnn"])
def test_peers_give_the_networks_labels(name: str, tmp_path: Path, checkpoint: Path) -> None:
    import importlib

    kind = next(each for each in KINDS if each.name == name)
    if lacking(kind):
        pytest.skip(lacking(kind))
    job = job_in(tmp_path, checkpoint)
    assert networks.prepare(job)["gmac"] > 0
    module = importlib.import_module(kind.module)
    module.build(job, kind.variant)
    frame = SceneVideo((60, 80), 1).frame(0).image
    labels = module.open_pipeline(job, kind.variant).run(frame)[0]
    from gradseg.benchmarks.side_by_side.peers_torch import open_pipeline

    expected = open_pipeline(job, "eager").run(frame)[0]
    assert labels.shape == (60, 80) and np.mean(labels == expected) > 0.95  # bfloat16 may decide near-ties otherwise


def test_memory_left(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 9 kB\nMemAvailable:  2048 kB\n")
    assert proc_bytes(path, "MemAvailable") == 2 << 20
    assert proc_bytes(path, "VmHWM") is None and proc_bytes(tmp_path / "absent", "MemAvailable") is None
