"""What tune.py keeps on disk, and its processes: damage, locks, crashes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_toys import HW, deployment_onnx, expected_labels
from tune_toys import Toy, record

from gradseg.base import conditions
from gradseg.base.conditions import Others
from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.export.tuning import machine as tune_machine
from gradseg.export.tuning.machine import Placement, has_bf16, noise_warnings, placements
from gradseg.export.tuning.process import CandidateError, Pool, Worker, room_for
from gradseg.export.tuning.state import MARK, Record, Store, source_fingerprint

KEY = {"model": "a", "machine": "b"}


def kept(store: Store, name: str = "q") -> Record:
    """A record with a real file behind it."""
    made = record(name, Toy(5.0, "int8"))
    path = store.folder / made.files[0]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"engine")
    made.digests = [sha256_of(path)]
    made.screening, made.turns, made.score = [1.0, 2.0], {3: [1.5], 11: [2.5]}, {"miou": 0.5}
    store.keep(made)
    return made


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    made = kept(Store(tmp_path / "work", KEY))
    again = Store(tmp_path / "work", KEY)
    assert again.record("q") == made and not again.notes
    assert again.record("other") is None


@pytest.mark.parametrize("damage", ["", "{", '{"hash": 1}', "[]", "\x00" * 40])
def test_a_damaged_record_is_made_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path / "work", KEY)
    kept(store)
    (tmp_path / "work" / "candidate-q.json").write_text(damage)
    assert store.record("q") is None and "damaged, so it is made again" in store.notes[0]


def test_a_damaged_engine_file_is_built_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "work", KEY)
    made = kept(store)
    (tmp_path / "work" / made.files[0]).write_bytes(b"engin")
    assert store.record("q") is None and "built and measured again" in store.notes[0]


@pytest.mark.parametrize("change", [{"turns": {"x": [1.0]}}, {"turns": {"1": []}}, {"new": 1}, {"turns": 5}])
def test_a_record_of_another_shape_is_made_again(tmp_path: Path, change: Dict[str, Any]) -> None:
    store = Store(tmp_path / "work", KEY)
    store.write("candidate-q", {**kept(store).to_dict(), **change})
    assert store.record("q") is None


def test_what_belongs_to_another_model_is_not_taken(tmp_path: Path) -> None:
    kept(Store(tmp_path / "work", KEY))
    other = Store(tmp_path / "work", {**KEY, "machine": "c"})
    assert other.record("q") is None
    assert "was of another machine: measured anew" in other.notes[0]
    assert not (tmp_path / "work" / "engines").exists()


def test_a_damaged_mark_begins_anew(tmp_path: Path) -> None:
    kept(Store(tmp_path / "work", KEY))
    (tmp_path / "work" / MARK).write_text("{")
    assert Store(tmp_path / "work", KEY).record("q") is None


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("mine")
    with pytest.raises(GradsegError, match="holds files that"):
        Store(tmp_path / "work", KEY)
    assert (tmp_path / "work" / "thesis.txt").read_text() == "mine"
    with pytest.raises(GradsegError, match="is a file"):
        Store(tmp_path / "work" / "thesis.txt", KEY)


def test_forgetting_keeps_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "work", KEY)
    kept(store)
    with store.locked():
        store.forget()
    assert store.record("q") is None and (tmp_path / "work" / MARK).is_file()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first, second = Store(tmp_path / "work", KEY), Store(tmp_path / "work", KEY)
    with first.locked(), pytest.raises(GradsegError, match=r"another tune\.py is at work there"), second.locked():
        pass
    with second.locked():
        pass


@given(st.dictionaries(st.integers(0, 99), st.lists(st.floats(0.1, 9.0), min_size=1), max_size=4))
def test_turns_survive_json(turns: Dict[int, List[float]]) -> None:
    made = record("q", Toy(1.0))
    made.turns = turns
    assert Record.from_dict(made.to_dict()) == made


def test_a_source_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"1")
    before = source_fingerprint(f"camvid:{tmp_path}")
    assert before == source_fingerprint(f"camvid:{tmp_path}") != source_fingerprint(str(tmp_path))
    (tmp_path / "images" / "a.png").write_bytes(b"22")
    assert before != source_fingerprint(f"camvid:{tmp_path}")
    assert source_fingerprint("scenes:frames=2") != source_fingerprint("scenes:frames=3") and not source_fingerprint(
        None
    )
    mixed = source_fingerprint(f"scenes: + camvid:{tmp_path}")
    (tmp_path / "images" / "b.png").write_bytes(b"1")
    assert mixed != source_fingerprint(f"scenes: + camvid:{tmp_path}")
    assert source_fingerprint(f"{tmp_path}/images/*.png")


# ---- processes


@pytest.fixture()
def worker(tmp_path: Path) -> Any:
    made = Worker(tmp_path)
    yield made
    made.close()


def opened(worker: Worker, folder: Path) -> Dict[str, Any]:
    frames = np.random.default_rng(0).integers(0, 256, (3, *HW, 3), np.uint8)
    np.save(str(folder / "frames.npy"), frames)
    return worker.open(deployment_onnx(folder / "toy.onnx"), folder / "frames.npy", HW, 1, ())


def test_a_process_runs_frames_and_labels(worker: Worker, tmp_path: Path) -> None:
    assert opened(worker, tmp_path)["backend"].startswith("onnxruntime")
    found = worker.ask("turn", settle=2, frames=4)
    assert len(found["ms"]) == 4 and min(found["ms"]) > 0 and found["memory"] > 1e6
    batch = np.random.default_rng(1).integers(0, 256, (1, *HW, 3), np.uint8)
    assert np.array_equal(worker.infer(batch), expected_labels(batch))
    assert worker.ask("operators", path=str(tmp_path / "toy.onnx"), threads=1)["ms"]["ReduceSum"] > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_it_sleeps_unless_it_is_asked(worker: Worker, tmp_path: Path) -> None:
    opened(worker, tmp_path)
    state = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state in ("T", "R", "S")  # R, S: the signal is on its way
    assert worker.ask("turn", settle=0, frames=1)["ms"]


def test_a_mistake_is_a_reason_and_the_process_goes_on(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="no such file"):
        worker.ask("open", path=str(tmp_path / "none.onnx"), threads=1, cpus=[], frames="", shared="")
    assert worker.alive and opened(worker, tmp_path)


def test_a_crash_is_a_reason(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(CandidateError, match=r"crashed \(SIGKILL\)"):
        worker.ask("turn", settle=0, frames=1)
    assert not worker.alive
    worker.close()


def test_a_bug_is_named_by_its_last_line(worker: Worker) -> None:
    with pytest.raises(CandidateError, match="AssertionError"):
        worker.ask("turn", settle=0, frames=1)


def test_what_hangs_is_ended(worker: Worker, tmp_path: Path) -> None:
    opened(worker, tmp_path)
    with pytest.raises(CandidateError, match="no answer within 0 s"):
        worker.ask("turn", seconds=0.0, settle=0, frames=10**6)
    assert not worker.alive


def test_building_names_what_is_missing(worker: Worker, tmp_path: Path) -> None:
    given = {"source": str(deployment_onnx(tmp_path / "a.onnx")), "hint": ""}
    out = str(tmp_path / "b.onnx")
    assert worker.ask("build", how="copy", out=out, **given)["files"] == [out]
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
    with pytest.raises(CandidateError):
        worker.ask("build", how="native", out=str(tmp_path / "b.gsn"), **given)


def test_the_pool_keeps_those_used_last(tmp_path: Path) -> None:
    class Toy:
        pid = 0

        def __init__(self) -> None:
            self.closed = False

        def close(self) -> None:
            self.closed = True

    pool, made = Pool(tmp_path, 2), {name: Toy() for name in "abc"}
    pool.add("a", made["a"])  # type: ignore[arg-type]
    pool.add("b", made["b"])  # type: ignore[arg-type]
    assert pool.get("a") is made["a"] and pool.get("c") is None
    pool.add("c", made["c"])  # type: ignore[arg-type]
    assert [made[name].closed for name in "abc"] == [False, True, False]
    pool.close()
    assert all(each.closed for each in made.values())
    assert (room_for(100, 1000), room_for(900, 1000), room_for(100, None)) == (5, 2, 8)


# ---- the machine


def core(root: Path, number: int, siblings: str, capacity: str = "") -> None:
    folder = root / f"cpu{number}" / "topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text(siblings + "\n")
    if capacity:
        (root / f"cpu{number}" / "cpu_capacity").write_text(capacity + "\n")


def test_placements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    smt, big, plain = tmp_path / "smt", tmp_path / "big", tmp_path / "plain"
    for number in range(4):
        core(smt, number, f"{number % 2},{number % 2 + 2}")
        core(big, number, str(number), "1024" if number > 1 else "446")
        core(plain, number, str(number), "1024")
    assert placements(None, smt) == [Placement(4), Placement(2, (0, 1))]
    assert placements(None, big) == [Placement(4), Placement(2, (2, 3))]
    assert placements(None, plain) == placements(None, tmp_path / "none") == [Placement(4)]
    assert placements(3, smt) == [Placement(3)]
    assert (Placement(1).words, Placement(2, (2, 3)).words) == ("1 thread", "2 threads on cores 2,3")


def test_bf16_is_read_from_the_cpu(tmp_path: Path) -> None:
    for text, expected in (
        ("flags\t\t: sse avx512_bf16 fma", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t: avx2 avx512vnni\nmodel name: bf16", False),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        assert has_bf16(str(tmp_path / "cpuinfo")) is expected
    assert not has_bf16(str(tmp_path / "none"))


def test_noise_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_machine, "governor", lambda: "performance")
    assert noise_warnings(0.0, 0.01, [("a", 1.1)]) == [] == noise_warnings(None, None, [])
    monkeypatch.setattr(tune_machine, "governor", lambda: "powersave")
    said = noise_warnings(64.0 * (os.cpu_count() or 1), 0.4, [("a", 1.1), ("b", 1.5)])
    assert [text.split()[0] for text in said] == ["before", "other", "turns", "the"]
    assert "40 % of the cores" in said[1] and "turns of b differ by a factor of 1.50" in said[2]


def test_others_share_leaves_our_own_out(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [(10.0, 100.0), (30.0, 140.0)]
    monkeypatch.setattr(conditions, "_busy", lambda: counts.pop(0))
    assert Others().share(own=12.0) == pytest.approx(0.2)
    monkeypatch.setattr(conditions, "_busy", lambda: None)
    assert Others().share(1.0) is None
