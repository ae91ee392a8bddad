"""Schedules, losses, batches, and whole small runs: killed and resumed, two processes, bad input."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from gradseg.base.errors import GradsegError
from gradseg.data.base import IGNORE, Sample
from gradseg.models.checkpoint import gradual_network, load_checkpoint, save_checkpoint
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import spec_for
from gradseg.train.feed.augment import NO_AUGMENT, PRESETS, random_crop
from gradseg.train.feed.batches import epoch_order
from gradseg.train.fit import main
from gradseg.train.losses import class_weights, coarse_cross_entropy, cross_entropy, soft_jaccard
from gradseg.train.phases import initialise
from gradseg.train.settings import ALPHA_SCHEDULES, alpha_at, learning_rate, plan_phases

FIT = [sys.executable, str(ROOT / "train" / "fit.py")]
SMALL = ["dg4-star-light", "--size", "32x48", "--batch", "4", "--seed", "5", "--threads", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 40x56 frames of two classes: bright pixels are 'light'."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    (folder / "classes.json").write_text('{"classes": ["dark", "light"], "ignore": [9]}')
    for index in range(8):
        label = np.zeros((40, 56), np.uint8)
        y, x = rng.integers(0, 20), rng.integers(0, 30)
        label[y : y + 18, x : x + 22] = 1
        label[:2] = 9
        image = np.where(label[..., None] == 1, 190, 60) + rng.integers(-20, 20, (40, 56, 3))
        cv2.imwrite(str(folder / "images" / f"f{index}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / "labels" / f"f{index}.png"), label)
    return folder


@given(st.sampled_from(ALPHA_SCHEDULES), st.floats(0.05, 1), st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_alpha_falls_from_one_to_exactly_zero(schedule: str, until: float, points: list[float]) -> None:
    values = [alpha_at(p, schedule, until) for p in sorted(points)]
    assert alpha_at(0.0, schedule, until) == 1.0
    assert alpha_at(until, schedule, until) == 0.0 == alpha_at(1.0, schedule, until)
    assert all(0 <= later <= earlier <= 1 for earlier, later in pairwise(values))


def test_step_schedule_has_five_drops() -> None:
    values = {round(alpha_at(i / 1000, "step", 0.5), 9) for i in range(1001)}
    assert len(values) == 7  # 1, five in between, 0


@given(st.integers(3, 400))
def test_phases_cover_every_epoch_once(epochs: int) -> None:
    phases = plan_phases(epochs, None, None, False)
    assert [p.name for p in phases] == ["encoder", "decoder", "joint"]
    assert phases[0].start == 0
    assert phases[-1].end == epochs
    assert all(a.end == b.start and a.epochs >= 1 for a, b in pairwise(phases))
    assert [p.name for p in plan_phases(epochs, None, None, True)] == ["joint"]


def test_too_few_epochs_are_refused() -> None:
    with pytest.raises(GradsegError, match="--epochs 2 leaves 0 for the joint phase"):
        plan_phases(2, None, None, False)
    with pytest.raises(GradsegError, match="at least 1"):
        plan_phases(0, None, None, True)


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(i / 100, 1.0) for i in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.05
    assert rates[-1] == pytest.approx(0.001)


def test_class_weights_favour_rare_classes_and_skip_absent_ones() -> None:
    shares = np.array([0.6, 0.3, 0.1, 0.0])
    for weighting in ("enet", "median"):
        weights = class_weights(shares, weighting).numpy()
        assert weights[0] < weights[1] < weights[2]
        assert weights[3] == 0
        assert weights[:3].mean() == pytest.approx(1)
    assert class_weights(shares, "none").tolist() == [1, 1, 1, 1]


def test_losses_by_hand() -> None:
    logits = torch.zeros(1, 2, 8, 8)
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 4:] = IGNORE
    weights = torch.ones(2)
    assert cross_entropy(logits, labels, weights).item() == pytest.approx(np.log(2), abs=1e-6)
    assert cross_entropy(logits, torch.full_like(labels, IGNORE), weights).item() == 0
    # 32 labelled pixels of class 0 at probability one half: (16 + 1) / (32 + 1)
    assert soft_jaccard(logits, labels).item() == pytest.approx(1 - 17 / 33, abs=1e-6)
    coarse = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
    assert coarse_cross_entropy(coarse, labels, weights).item() == pytest.approx(np.log1p(np.exp(-2)), abs=1e-6)
    labels[:, :2] = 1  # half of the labelled pixels in the cell
    mixed = 0.5 * np.log1p(np.exp(-2)) + 0.5 * np.log1p(np.exp(2))
    assert coarse_cross_entropy(coarse, labels, weights).item() == pytest.approx(mixed, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 5), st.integers(0, 9))
def test_epoch_order_covers_every_sample_in_equal_parts(count: int, world: int, batch: int, epoch: int) -> None:
    parts = [epoch_order(count, 1, epoch, rank, world, batch) for rank in range(world)]
    assert {i for part in parts for indices in part for i in indices} == set(range(count))
    assert len({len(part) for part in parts}) == 1
    assert all(len(indices) == batch for part in parts for indices in part)
    assert parts[0] == epoch_order(count, 1, epoch, 0, world, batch)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.tuples(st.integers(8, 60), st.integers(8, 60)))
def test_crops_keep_image_and_label_aligned(seed: int, crop_hw: tuple[int, int]) -> None:
    label = np.arange(30, dtype=np.uint8)[:, None].repeat(40, 1) // 10
    image = np.repeat((label * 100)[..., None], 3, 2)
    how = PRESETS["full"]
    plain = type(how)(scale=how.scale, flip=True, colour=0.0, soften=0.0)
    crop, cut = random_crop(Sample(image, label, "x"), crop_hw, plain, np.random.default_rng(seed))
    assert crop.shape == (*crop_hw, 3)
    assert cut.shape == crop_hw
    assert set(np.unique(cut)) <= {0, 1, 2, IGNORE}
    inside = cut != IGNORE
    near = np.abs(crop[..., 0].astype(int)[inside] - cut[inside].astype(int) * 100) <= 60
    assert near.mean() > 0.75 if inside.any() else True


def test_no_augmentation_at_full_size_is_the_frame_itself() -> None:
    rng = np.random.default_rng(0)
    sample = Sample(rng.integers(0, 255, (16, 24, 3), np.uint8), rng.integers(0, 3, (16, 24), np.uint8), "x")
    image, label = random_crop(sample, (16, 24), NO_AUGMENT, rng)
    assert np.array_equal(image, sample.image)
    assert np.array_equal(label, sample.label)


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="", encoding="utf-8") as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def test_run_without_an_encoder_phase_is_resumed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradseg.train.trainer import Trainer

    command = [*SMALL, "--data", f"folder:{data}", "--epochs", "3", "--encoder-epochs", "0", "--decoder-epochs", "1"]
    main([*command, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_save", interrupted_after(Trainer._save))
        main([*command, "--out", str(tmp_path / "cut")])
    (tmp_path / "cut" / ".last-half.pth").write_bytes(b"half")
    main([*command, "--out", str(tmp_path / "cut"), "--resume"])
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".*"))


def interrupted_after(save: Any) -> Any:
    """`save`, then an interrupt, as if the process ended there."""

    def wrapped(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    return wrapped


def test_run_interrupted_after_every_epoch_equals_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradseg.train.trainer import Trainer

    command = [*SMALL, "--data", f"folder:{data}", "--epochs", "5", "--encoder-epochs", "2", "--decoder-epochs", "1"]
    main([*command, "--out", str(tmp_path / "whole")])
    again: list[str] = []
    for _ in range(5):  # the ends of the encoder and of the decoder phase among them
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Trainer, "_save", interrupted_after(Trainer._save))
            main([*command, "--out", str(tmp_path / "cut"), *again])
        again = ["--resume"]
    main([*command, "--out", str(tmp_path / "cut"), *again])
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    first, second = (load_checkpoint(tmp_path / name / "best.pth").network.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_validation_without_labels_is_said(data: Path, tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.json").write_text((data / "classes.json").read_text())
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((40, 56, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), np.full((40, 56), 255, np.uint8))
    arguments = [*SMALL, "--direct", "--data", f"folder:{data}", "--val", f"folder:{tmp_path}", "--epochs", "1"]
    with pytest.raises(GradsegError, match="every label of --val is ignored"):
        main([*arguments, "--out", str(tmp_path / "run")])


def test_run_killed_and_resumed_equals_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    command = [*FIT, *SMALL, "--data", f"folder:{data}", "--epochs", "6", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert subprocess.run([*command, str(whole)], env=environment, timeout=300, check=False).returncode == 0

    for lines in (1, 2):  # killed in the encoder phase, then in the decoder phase
        resumed = ["--resume"] if lines > 1 else []
        process = subprocess.Popen([*command, str(cut), *resumed], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.startswith("epoch ")
            if seen == lines:
                process.send_signal(signal.SIGKILL)
                break
        process.wait(60)
        process.stdout.close()
    assert subprocess.run([*command, str(cut), "--resume"], env=environment, timeout=300, check=False).returncode == 0

    assert rows_of(cut) == rows_of(whole)
    first, second = load_checkpoint(whole / "best.pth").network, load_checkpoint(cut / "best.pth").network
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    for name in ("curves.png", "settings.json", "tensorboard", "last.pth"):
        assert (cut / name).exists(), name
    load_checkpoint(cut / "last.pth")


def test_unfinished_encoder_phase_is_not_exportable(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradseg.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "_save", interrupted_after(Trainer._save))
    with pytest.raises(KeyboardInterrupt):
        main([*SMALL, "--data", f"folder:{data}", "--epochs", "8", "--out", str(tmp_path)])
    with pytest.raises(GradsegError, match=r"gradual grouping is not finished, alpha is 0\.\d+"):
        load_checkpoint(tmp_path / "last.pth")


def test_two_processes_train_one_network(data: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    arguments = [*FIT[1:], *SMALL, "--data", f"folder:{data}", "--epochs", "3", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *arguments], env=environment, timeout=300, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = rows_of(tmp_path / "two")
    assert [row["phase"] for row in rows] == ["encoder", "decoder", "joint"]
    assert done.stdout.count("epoch 1/3") == 1
    raw = torch.load(tmp_path / "two" / "last.pth", weights_only=True)
    assert raw["resume"]["updates"] == 1  # 7 training frames over 2 processes of 4: one step an epoch
    load_checkpoint(tmp_path / "two" / "best.pth")


def test_direct_training_learns(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--direct", "--data", f"folder:{data}", "--val", f"folder:{data}", "--epochs", "14"]
    assert main([*arguments, "--val-every", "14", "--lr", "0.01", "--augment", "none", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^dark +0\.\d{4}\nlight +0\.\d{4}\n.*best\.pth: finalised", said, re.MULTILINE)
    rows = rows_of(tmp_path)
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert {row["phase"] for row in rows} == {"joint"}
    checkpoint = load_checkpoint(tmp_path / "best.pth")
    assert checkpoint.spec.classes == ("dark", "light")
    assert checkpoint.info["settings"]["direct"] is True


def test_mixed_precision_trains_and_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradseg.train.trainer import Trainer

    command = [*SMALL, "--data", f"folder:{data}", "--epochs", "3", "--precision", "bf16-mixed", "--out", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_save", interrupted_after(Trainer._save))
        main(command)
    assert main([*command, "--resume"]) == 0
    assert all(np.isfinite(float(row["loss"])) for row in rows_of(tmp_path))
    weights = load_checkpoint(tmp_path / "best.pth").network.state_dict()
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float32}


def test_starting_from_another_checkpoint(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    given = SegNetwork(spec_for("dg4-star-light", ("dark", "light"), ((0, 0, 0), (1, 1, 1)), (32, 48))).eval()
    save_checkpoint(tmp_path / "given.pth", given)
    x = torch.randn(1, 3, 32, 48)
    dense = gradual_network(given.spec).eval()
    assert "taken over" in initialise(dense, tmp_path / "given.pth")
    with torch.no_grad():  # off-diagonal weights are 0: the same function at alpha 1
        assert torch.allclose(dense(x), given(x), atol=1e-5)

    other = SegNetwork(spec_for("dg4-star-light", input_hw=(32, 48)))
    assert "new prediction layers (2 tensors)" in initialise(other, tmp_path / "given.pth")
    with pytest.raises(GradsegError, match="'dg4-star-light' does not fit 'd-star'"):
        initialise(SegNetwork(spec_for("d-star")), tmp_path / "given.pth")

    arguments = [*SMALL, "--data", f"folder:{data}", "--epochs", "3", "--init", str(tmp_path / "given.pth")]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonet"], "unknown architecture 'nonet'"),
        (["d", "--size", "30x48"], "--size: input size 30x48 .* 24x48 and 32x48 fit"),
        (["d", "--size", "large"], "HEIGHTxWIDTH"),
        (["d", "--batch", "0"], "--batch 0: must be at least 1"),
        (["d", "--data", "camvid:/nowhere"], "no such folder '/nowhere'"),
        (["d", "--data", "video:x"], "expected camvid:DIR"),
        (["d", "--resume"], "--resume: no .*last.pth"),
        (["d", "--limit", "0"], "--limit 0"),
        (["d", "--val-limit", "0"], "--limit 0"),
        (["d", "--threads", "-1"], "--threads -1"),
        (["d", "--seed", "-1"], "--seed -1"),
        (["d", "--lr", "inf"], "--lr inf: must be a finite number"),
        (["d", "--class-power", "nan"], "--class-power nan"),
        (["d", "--encoder-epochs", "-1"], "--encoder-epochs -1: must be 0 or more"),
        (["d", "--batch", "1", "--size", "8x8"], "BatchNorm needs more than one value"),
    ],
)
def test_bad_settings_are_one_line(arguments: list[str], message: str, data: Path, tmp_path: Path) -> None:
    base = [] if "--data" in arguments else ["--data", f"folder:{data}"]
    with pytest.raises(GradsegError, match=message):
        main([*arguments, *base, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "last.pth").exists()


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(data: Path, tmp_path: Path) -> None:
    base = [*SMALL, "--direct", "--data", f"folder:{data}", "--out", str(tmp_path)]
    main([*base, "--epochs", "1"])
    with pytest.raises(GradsegError, match="already holds a run; continue it with --resume"):
        main([*base, "--epochs", "1"])
    with pytest.raises(GradsegError, match=r"other settings \(epochs: 1 → 2\)"):
        main([*base, "--epochs", "2", "--resume"])
