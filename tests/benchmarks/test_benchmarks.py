"""The benchmark scripts: what their JSON says, on engines small enough to know the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import pytest
import torch

from gradseg.base.errors import GradsegError
from gradseg.benchmarks import accuracy, latency, models
from gradseg.data.base import Dataset, Sample
from gradseg.data.specs import open_data
from gradseg.models.checkpoint import save_checkpoint
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import ModelSpec, spec_for
from gradseg.runtime.engines.open import open_engine

CONDITIONS = {"device", "threads", "versions", "commit"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random network as a .pth engine."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bench") / "net.pth"
    save_checkpoint(path, SegNetwork(spec_for("dg4-star-light", input_hw=(48, 64))))
    return path


class Bright:
    """An engine that labels a pixel by its blue value: 0 below 100, 1 from there, upside down if `wrong`."""

    name, backend, device, precision = "bright", "numpy", "CPU", "fp32"
    threads: Optional[int] = 1
    batch, frame_hw = 1, (8, 8)

    def __init__(self, wrong: bool = False) -> None:
        self.spec = ModelSpec("bright", ("dark", "light"), ((0, 0, 0), (255, 255, 255)), (8, 8), blocks="")
        self.wrong = wrong

    def infer(self, batch: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return ((batch[..., 0] >= 100) != self.wrong).astype(np.uint8)

    def close(self) -> None:
        pass


class Squares(Dataset):
    classes, palette = ("dark", "light"), ((0, 0, 0), (255, 255, 255))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        label = np.zeros((8, 8), np.uint8)
        label[: index + 2] = 1
        return Sample(np.repeat(label[..., None] * 200, 3, 2), label, str(index))


def test_accuracy_of_a_perfect_and_of_an_inverted_engine() -> None:
    perfect = accuracy.measure(Bright(), Squares(), against=Bright(wrong=True))
    assert perfect["miou"] == perfect["pixel_accuracy"] == 1.0
    assert perfect["per_class"] == {"dark": 1.0, "light": 1.0}
    assert perfect["against"] == {"engine": "bright", "miou": 0.0, "agreement": 0.0}
    assert accuracy.measure(Bright(wrong=True), Squares())["pixel_accuracy"] == 0.0


def test_accuracy_refuses_data_of_other_classes(checkpoint: Path) -> None:
    with pytest.raises(GradsegError, match=r"are not the data's \['dark', 'light'\]"):
        accuracy.check_classes(open_engine(checkpoint), Squares())


def test_accuracy_script(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    spec = "scenes:frames=2,size=48x64"
    arguments = ["--engine", str(checkpoint), "--data", spec, "--against", str(checkpoint)]
    assert accuracy.main([*arguments, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert set(result["conditions"]) >= CONDITIONS
    assert result["against"]["agreement"] == 1.0
    assert result["against"]["miou"] == result["miou"]
    assert set(result["per_class"]) == set(open_data(spec).classes)
    present = [v for v in result["per_class"].values() if v is not None]
    assert result["miou"] == pytest.approx(sum(present) / len(present))
    assert "mIoU" in capsys.readouterr().out


def test_latency_script_takes_engines_in_turn(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "l.json"
    arguments = ["--engine", str(checkpoint), str(checkpoint), "--samples", "3", "--warmup", "1", "--json", str(out)]
    assert latency.main([*arguments, "--frame-size", "60x80"]) == 0
    result = json.loads(out.read_text())
    assert set(result["conditions"]) >= CONDITIONS
    assert len(result["engines"]) == 2
    for row in result["engines"]:
        assert row["samples"] == 3
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["fps"] == pytest.approx(1000 / row["mean_ms"])
        assert set(row["stages_p50_ms"]) == {"preprocess", "infer", "postprocess"}
    kept = checkpoint.read_bytes()
    for script in (latency.main, accuracy.main):
        extra = [] if script is latency.main else ["--data", "scenes:frames=1,size=48x64"]
        with pytest.raises(GradsegError, match="is an input itself and would be overwritten"):
            script(["--engine", str(checkpoint), "--json", str(checkpoint), *extra])
    assert checkpoint.read_bytes() == kept
    with pytest.raises(GradsegError, match="--samples"):
        latency.main(["--engine", str(checkpoint), "--samples", "0"])


def test_models_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.json"
    assert models.main(["--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {row["id"] for row in result["rows"] if not row["agrees"]} == {"d"}
    keys = {"id", "weights", "gmac", "published_weights", "published_gmac", "agrees", "parameters"}
    assert all(keys <= set(row) for row in result["rows"])
    assert set(result["conditions"]) >= CONDITIONS
    assert "printed row disagrees" in capsys.readouterr().out


def test_json_that_cannot_be_written_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(GradsegError, match="cannot write"):
        models.main(["--json", str(blocker / "m.json")])
    assert blocker.read_text() == "x"


def test_accuracy_on_real_frames_matches_a_direct_count(checkpoint: Path, camvid_val: Path) -> None:
    engine = open_engine(checkpoint)
    data = open_data(f"camvid:{camvid_val}", limit=2)
    result = accuracy.measure(engine, data)
    hits = total = 0
    for index in range(2):
        sample = data[index]
        small = cv2.resize(sample.image, (64, 48), interpolation=cv2.INTER_LINEAR)[None]
        labels = engine.infer(small)[0]
        big = cv2.resize(labels, (480, 360), interpolation=cv2.INTER_NEAREST_EXACT)
        known = sample.label != 255
        hits += int((big[known] == sample.label[known]).sum())
        total += int(known.sum())
    assert result["pixel_accuracy"] == pytest.approx(hits / total)
