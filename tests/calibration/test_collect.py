"""Statistics gathered frame by frame, the sources they come from, and the checks of a calibration set."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, Dict, Iterator, List

import cv2
import numpy as np
import onnx
import pytest
from export_toys import SCENES, exported, frames, one_torch_thread  # noqa: F401
from onnx import TensorProto, helper, numpy_helper

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8 import observed_tensors
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.ranges import checks, collect
from gradseg.calibration.ranges.collect import Statistics, statistics_from_frames
from gradseg.calibration.ranges.observers import BINS, Observer
from gradseg.graphs.frames import FrameSource, open_frames
from gradseg.graphs.sessions import OnnxRunner, exposed
from gradseg.models.spec import CAMVID_CLASSES


def image(index: int, hw: Any = (40, 48)) -> np.ndarray[Any, Any]:
    """A picture unlike that of any other index."""
    return np.random.default_rng(index).integers(30, 220, (*hw, 3), dtype=np.uint8)


def folder_of(path: Path, count: int, bad: Any = ()) -> Path:
    path.mkdir(exist_ok=True)
    for index in range(count):
        name = path / f"{index:03d}.png"
        if index in bad:
            name.write_bytes(b"this is no picture")
        else:
            cv2.imwrite(str(name), image(index))
    return path


# ---- statistics


def test_statistics_are_those_of_the_tensors_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported()
    tensors, means_of = observed_tensors(model)
    batches = [frame[0] for frame in frames()[:3]]
    monkeypatch.setattr(collect, "SAMPLE", 5000)  # so that large tensors are summed up inside the graph
    monkeypatch.setattr("gradseg.calibration.ranges.observers.SAMPLE", 5000)
    found = statistics_from_frames(model, tensors, batches, means_of, threads=1)
    everything = list(dict.fromkeys([*tensors, *means_of]))
    runner = OnnxRunner(exposed(model, everything), threads=1, optimise=False)
    expected = {name: Observer() for name in tensors}
    means: Dict[str, Any] = dict.fromkeys(means_of, 0.0)
    labels = []
    for batch in batches:
        values = dict(zip(everything, runner.run(batch[None], everything), strict=True))
        for name in tensors:
            expected[name].update(values[name])
        for name in means_of:
            means[name] = means[name] + values[name].astype(np.float64).mean(axis=(0, 2, 3)) / 3
        labels.append(runner.run(batch[None], [model.graph.output[0].name])[0])
    assert sum(observer.counts.sum() for observer in expected.values()) > 0
    for name in tensors:
        assert found.observers[name].counts.tolist() == expected[name].counts.tolist(), name
        assert (found.observers[name].low, found.observers[name].high) == (expected[name].low, expected[name].high)
    assert list(found.means) == means_of
    for name in means_of:
        np.testing.assert_allclose(found.means[name], means[name], rtol=1e-4, atol=1e-5)
    assert found.frames == 3
    assert found.predicted.tolist() == np.bincount(np.concatenate(labels).ravel(), minlength=11).tolist()


def test_frames_are_consumed_one_at_a_time_and_memory_is_that_of_the_histograms() -> None:
    model = exported()
    alive: List[Any] = []
    most = 0

    def stream() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal most
        for index in range(5):
            frame = frames()[index % 4][0].copy()
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(ref() is not None for ref in alive))

    found = statistics_from_frames(model, plan_for(model, "cpu").observed()[:4], stream(), threads=1)
    assert len(alive) == 5 and found.frames == 5
    assert most <= 1, "earlier frames are still held"
    assert all(observer.counts.shape == (BINS,) for observer in found.observers.values())


def test_large_tensors_leave_the_graph_as_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported()
    names = plan_for(model, "cpu").observed()
    monkeypatch.setattr(collect, "SAMPLE", 1000)
    monkeypatch.setattr("gradseg.calibration.ranges.observers.SAMPLE", 1000)
    given = 0
    run = OnnxRunner.run

    def watched(self: OnnxRunner, batch: Any, outputs: Any = None) -> List[Any]:
        nonlocal given
        values = run(self, batch, outputs)
        given = max(given, max(value.size for value in values[1:]))
        return values

    monkeypatch.setattr(OnnxRunner, "run", watched)
    statistics_from_frames(model, names, [frames()[0][0]], threads=1)
    assert 0 < given <= 2000


@pytest.mark.parametrize("sample", [10, 1 << 18])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_name_tensor_and_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int, bad: float
) -> None:
    """Also a single NaN in a tensor that leaves the graph as a sample."""
    monkeypatch.setattr(collect, "SAMPLE", sample)
    monkeypatch.setattr("gradseg.calibration.ranges.observers.SAMPLE", sample)
    poison = np.zeros((1, 32, 40, 3), np.float32)
    poison[0, 3, 5, 1] = bad
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float", "poison"], ["hurt"]),
        helper.make_node("ArgMax", ["hurt"], ["best"], axis=3, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 32, 40, 3])],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, 32, 40])],
        [numpy_helper.from_array(poison, "poison")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert statistics_from_frames(model, ["float"], [image(0)], threads=1).frames == 1
    source = open_frames(str(folder_of(tmp_path / "images", 2)), 4)
    with pytest.raises(GradsegError, match=r"NaN or infinity in tensor hurt on frame 1 \(.*000.png\)"):
        statistics_from_frames(model, ["float", "hurt"], source, threads=1)


def test_no_frames_is_an_error() -> None:
    with pytest.raises(GradsegError, match="no frames to calibrate with"):
        statistics_from_frames(exported(), plan_for(exported(), "cpu").observed(), [], threads=1)


def test_a_model_without_a_spec_counts_the_labels_it_gives() -> None:
    bare = onnx.ModelProto()
    bare.CopyFrom(exported())
    del bare.metadata_props[:]
    found = statistics_from_frames(bare, [], [frames()[0][0]], threads=1)
    assert found.predicted.sum() == 64 * 96 and found.predicted[-1] > 0


# ---- sources


@pytest.mark.parametrize("text", ["random", "random:", "random:100", "noise:seed=1", "Gaussian", "zeros"])
def test_random_data_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(GradsegError, match="refused: ranges measured on random data do not fit real frames"):
        open_frames(text, 4)


def test_a_folder_that_happens_to_be_called_random_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "random", 1)
    monkeypatch.chdir(tmp_path)
    assert len(list(open_frames("random", 4))) == 1


def test_sources_are_spread_evenly_and_repeat(tmp_path: Path) -> None:
    folder_of(tmp_path, 10)
    source = open_frames(str(tmp_path), 5)
    first = list(source.named())
    assert [Path(name).name for name, _ in first] == ["000.png", "002.png", "004.png", "006.png", "008.png"]
    for (_, frame), again in zip(first, source, strict=True):
        np.testing.assert_array_equal(frame, again)
    assert len(list(open_frames(str(tmp_path / "*.png"), 100))) == 10
    assert len(list(open_frames(str(tmp_path / "003.png"), 100))) == 1
    assert [name for name, _ in open_frames(SCENES, 2).named()] == ["scene 0", "scene 2"]
    assert len(list(open_frames(f"{SCENES} + scenes:frames=3,size=64x96,seed=2", 100))) == 7


@pytest.mark.parametrize("text, message", [("nowhere", "nowhere: no such"), ("camvid:nowhere", "no such folder")])
def test_absent_sources(text: str, message: str) -> None:
    with pytest.raises(GradsegError, match=message):
        open_frames(text, 4)
    with pytest.raises(GradsegError, match="at least 1 is needed"):
        open_frames(SCENES, 0)


def test_a_corrupt_image_is_named_and_ends_it(tmp_path: Path) -> None:
    folder_of(tmp_path, 6, bad=(3,))
    came = []
    with pytest.raises(GradsegError, match=r"003.png: corrupt or not an image; .*--skip-bad"):
        came.extend(open_frames(str(tmp_path), 6))
    assert len(came) == 3
    with pytest.raises(GradsegError, match=r"000.png: corrupt"):
        open_frames(str(folder_of(tmp_path / "first", 2, bad=(0,))), 6)  # said at once


def test_corrupt_images_are_skipped_counted_and_named_if_asked_for(tmp_path: Path) -> None:
    folder_of(tmp_path, 6, bad=(0, 3))
    source = open_frames(str(tmp_path), 6, skip_bad=True)
    for _ in range(2):  # also when it is repeated
        assert [Path(name).stem for name, _ in source.named()] == ["001", "002", "004", "005"]
        assert [Path(name).name for name in source.skipped] == ["000.png", "003.png"]
    warning = checks.source_warnings(source)
    assert len(warning) == 1 and warning[0].startswith("2 frames could not be read and were skipped")
    assert "003.png" in warning[0]
    hopeless = open_frames(str(folder_of(tmp_path / "all", 2, bad=(0, 1))), 6, skip_bad=True)
    with pytest.raises(GradsegError, match=r"no frame can be read; the last one: .*001.png"):
        list(hopeless)


def labelled(path: Path, count: int, bad: Any = ()) -> str:
    folder_of(path, 0)
    folder_of(path / "images", count, bad)
    (path / "labels").mkdir()
    for index in range(count):
        cv2.imwrite(str(path / "labels" / f"{index:03d}.png"), np.zeros((40, 48), np.uint8))
    return f"camvid:{path}"


def test_corrupt_images_of_data_specs(tmp_path: Path) -> None:
    spec = labelled(tmp_path / "a", 4, bad=(2,))
    with pytest.raises(GradsegError, match=r"002.png: corrupt or not an image"):
        list(open_frames(spec, 9))
    both = open_frames(f"{spec} + {labelled(tmp_path / 'b', 3, bad=(1,))}", 9, skip_bad=True)
    assert len(list(both)) == 5
    assert both.skipped == [str(tmp_path / "a/images/002.png"), str(tmp_path / "b/images/001.png")]


def video(path: Path, count: int) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (320, 240))  # type: ignore[attr-defined]
    for index in range(count):
        writer.write(cv2.add(image(index, (240, 320)) // 8, np.full((240, 320, 3), index * 4, np.uint8)))
    writer.release()
    return str(path)


def test_video_frames(tmp_path: Path) -> None:
    source = open_frames(video(tmp_path / "clip.avi", 40), 4)
    named = list(source.named())
    assert [name for name, _ in named] == ["frame 0", "frame 10", "frame 20", "frame 30"]
    levels = np.array([float(frame.mean()) for _, frame in named])
    assert np.abs(levels - levels[0] - np.array([0, 40, 80, 120])).max() <= 6
    assert source.skipped == [] and source.warning == ""


def test_a_video_that_ends_early(tmp_path: Path) -> None:
    whole = Path(video(tmp_path / "clip.avi", 40))
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(GradsegError, match=r"cut.avi: ended after \d+ frames of 40, with [1-7] of the 8 frames to "):
        list(open_frames(str(cut), 8))
    source = open_frames(str(cut), 8, skip_bad=True)
    came = [name for name, _ in source.named()]
    assert 1 <= len(came) < 8 and len(came) + len(source.skipped) == 8
    assert not set(came) & set(source.skipped) and source.skipped[-1] == "frame 35"


def test_only_frames_that_are_wanted_must_be_there(tmp_path: Path) -> None:
    """The last frames of a video are not among those that are spread over it."""
    whole = Path(video(tmp_path / "clip.avi", 40))
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.8)])
    assert [name for name, _ in open_frames(str(cut), 2).named()] == ["frame 0", "frame 20"]


# ---- checks


def signatures(pictures: List[np.ndarray[Any, Any]]) -> List[checks.Signature]:
    return [checks.signature_of(f"{index}.png", picture) for index, picture in enumerate(pictures)]


def smooth(index: int) -> np.ndarray[Any, Any]:
    """A picture with large shapes, as real ones have."""
    small = np.random.default_rng(index).integers(30, 220, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (96, 64), interpolation=cv2.INTER_LINEAR)


def test_a_good_set_raises_no_warning() -> None:
    assert checks.frame_warnings(signatures([smooth(index) for index in range(32)])) == []


def test_few_frames_and_a_single_one() -> None:
    single = checks.frame_warnings(signatures([smooth(0)]))
    assert len(single) == 1 and single[0].startswith("a single frame:") and "at least 32 frames" in single[0]
    few = checks.frame_warnings(signatures([smooth(index) for index in range(5)]))
    assert len(few) == 1 and few[0].startswith("only 5 different frames") and "32 to 128 frames" in few[0]
    copies = checks.frame_warnings(signatures([smooth(0)] * 20))
    assert copies[0].startswith("a single frame:"), "copies do not make a set"


def test_exact_and_near_duplicates_are_named() -> None:
    pictures = [smooth(index) for index in range(20)]
    pictures[7] = pictures[2].copy()
    _, coded = cv2.imencode(".jpg", pictures[3], [cv2.IMWRITE_JPEG_QUALITY, 80])
    pictures[9] = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    exact, near = checks.frame_warnings(signatures(pictures))
    assert "1 of 20 frames are there twice (7.png = 2.png)" in exact and "remove the copies" in exact
    assert "1 of 20 frames are nearly the same as an earlier one (9.png ~ 3.png)" in near and "further apart" in near


def test_dark_and_over_exposed_frames_are_counted() -> None:
    pictures = [smooth(index) for index in range(20)]
    for index in range(4, 9):
        pictures[index] = pictures[index] // 16
    pictures[11] = cv2.add(pictures[11], np.full_like(pictures[11], 220))
    dark, bright = checks.frame_warnings(signatures(pictures))
    assert dark.startswith("5 of 20 frames (25 %) are nearly black (4.png, 5.png, 6.png, 7.png and 1 more)")
    assert bright.startswith("1 of 20 frames (5 %) are over-exposed (11.png)") and "leave them out" in bright


def test_classes_never_predicted_and_dead_tensors_are_named() -> None:
    dead, live = Observer(), Observer()
    dead.update(np.zeros(4, np.float32))
    live.update(np.ones(4, np.float32))
    predicted = np.full(11, 9, np.int64)
    predicted[[2, 6]] = 0
    found = Statistics({"/a": dead, "/b": live}, predicted=predicted)
    classes, tensors = checks.prediction_warnings(found, CAMVID_CLASSES)
    assert classes.startswith("classes never predicted on these frames: pole, sign;") and "add frames" in classes
    assert tensors.startswith("1 tensors are zero on every frame (/a)")
    found.predicted[:] = 1
    del found.observers["/a"]
    assert checks.prediction_warnings(found, CAMVID_CLASSES) == []


def test_frames_of_the_validation_set_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", 4)
    folder_of(tmp_path / "val", 2)  # the same pictures 000 and 001
    cv2.imwrite(str(tmp_path / "val" / "new.png"), image(99))
    watched = checks.Watched(open_frames(str(tmp_path / "train"), 9), (32, 40))
    assert len(list(watched)) == 4
    leaks = checks.leakage_warnings(watched.signatures, open_frames(str(tmp_path / "val"), 1 << 30), (32, 40))
    assert len(leaks) == 1 and leaks[0].startswith(
        f"2 frames of the validation set {tmp_path / 'val'} are calibrated on"
    )
    assert "train/001.png" in leaks[0] and "val/001.png" in leaks[0] and "calibrate on other frames" in leaks[0]
    (tmp_path / "val" / "000.png").unlink()
    (tmp_path / "val" / "001.png").unlink()
    assert checks.leakage_warnings(watched.signatures, open_frames(str(tmp_path / "val"), 9), (32, 40)) == []


def test_watched_frames_are_the_runtimes_and_keep_no_picture(tmp_path: Path) -> None:
    from gradseg.runtime.preprocess import Preprocessor

    source = open_frames(str(folder_of(tmp_path, 3, bad=(1,))), 9, skip_bad=True)
    watched = checks.Watched(source, (32, 40))
    seen = [frame.copy() for frame in watched]
    for frame, original in zip(seen, source, strict=True):
        np.testing.assert_array_equal(frame, Preprocessor((32, 40))(original)[0])
    assert [Path(name).name for name in watched.skipped] == ["001.png"]
    kept = sum(each.thumbnail.nbytes + len(each.digest) for each in watched.signatures)
    assert len(watched.signatures) == 2 and kept < 2 * 1024
    before = watched.sha256
    assert list(watched) and watched.sha256 == before
    assert isinstance(watched, FrameSource)


def test_real_frames_of_a_second_apart_are_no_duplicates(camvid_val: Path) -> None:
    watched = checks.Watched(open_frames(f"camvid:{camvid_val}", 24), (96, 128))
    assert len(list(watched)) == 24
    assert checks.frame_warnings(watched.signatures) == []


def test_neighbouring_frames_of_a_video_are_near_duplicates(highway: Path) -> None:
    source = open_frames(str(highway), 221)
    watched = checks.Watched(source, (96, 128))
    frames_seen = watched.named()
    for _ in range(20):
        next(frames_seen)
    warnings = checks.frame_warnings(watched.signatures)
    assert len(warnings) == 1 and "nearly the same" in warnings[0]
