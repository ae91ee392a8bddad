"""Checkpoint files as they arrive: public ERFNet ones, damaged ones, ones with code inside."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradseg.base.errors import GradsegError
from gradseg.models.checkpoint import (
    FORMAT,
    VERSION,
    gradual_network,
    load_checkpoint,
    public_spec,
    read_raw,
    save_checkpoint,
)
from gradseg.models.grouping import set_alpha
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, spec_for

SPEC = spec_for("dg2-star-light", input_hw=(64, 96))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "good.pth"
    save_checkpoint(path, SegNetwork(SPEC), {"epoch": 3})
    return path


def test_round_trip(good: Path) -> None:
    torch.manual_seed(0)
    network = SegNetwork(SPEC).eval()
    ckpt = load_checkpoint(good)
    assert ckpt.spec == SPEC
    assert ckpt.info == {"epoch": 3}
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ckpt.network(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_public_erfnet_keys_load(tmp_path: Path, prefix: str, predictor: bool, wrapped: bool) -> None:
    torch.manual_seed(0)
    network = SegNetwork(spec_for("erfnet", CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, (64, 96)), predictor).eval()
    state = {  # as old PyTorch wrote them, without the counters
        prefix + name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    assert f"{prefix}encoder.initial_block.conv.weight" in state
    path = tmp_path / "erfnet.pth"
    torch.save({"epoch": 150, "state_dict": state} if wrapped else state, path)
    spec = public_spec(path, "erfnet", (64, 96))
    assert spec.classes == CITYSCAPES_CLASSES
    ckpt = load_checkpoint(path, spec)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ckpt.network(x), network(x), rtol=0, atol=0)


def test_bare_state_dict_asks_for_its_architecture(tmp_path: Path) -> None:
    torch.save(SegNetwork(spec_for("erfnet")).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(GradsegError, match=r"no GradSeg ModelSpec inside.*--arch erfnet"):
        load_checkpoint(tmp_path / "bare.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GradsegError, match=r"none\.pth: no such file; expected a PyTorch checkpoint") as caught:
        load_checkpoint(tmp_path / "none.pth")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_truncated_file(good: Path, kept: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(GradsegError, match=r"is empty|truncated|not a PyTorch checkpoint") as caught:
        load_checkpoint(good)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"hello, this is text\n" * 20, b"\x89PNG\r\n\x1a\n" + b"\0" * 200, b"{}"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(GradsegError, match="not a PyTorch checkpoint"):
        load_checkpoint(path)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "it-ran"
    torch.save({"state": Payload(marker)}, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(GradsegError, match="refused, it holds pickled code"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not marker.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(SegNetwork(SPEC), tmp_path / "whole.pth")
    with pytest.raises(GradsegError, match="re-save it as a state dict"):
        load_checkpoint(tmp_path / "whole.pth")


def damaged(good: Path, **changes: Any) -> Path:
    raw: Dict[str, Any] = torch.load(good, weights_only=True)
    raw.update(changes)
    torch.save(raw, good)
    return good


def test_weights_that_do_not_fit_the_spec_are_counted_and_named(good: Path) -> None:
    other = dataclasses.replace(SPEC, arch="mine", groups=4).to_json()
    with pytest.raises(GradsegError, match=r"do not fit the spec \(\d+ mis-shaped: encoder\.layers\.1\.pw1\.weight is"):
        load_checkpoint(damaged(good, spec=other))


def test_another_architecture_names_missing_and_unexpected(good: Path) -> None:
    with pytest.raises(GradsegError, match=r"\d+ missing: .*; \d+ unexpected: "):
        load_checkpoint(damaged(good, spec=spec_for("erfnet-paper").to_json()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"spec": "{}"}, "missing fields"),
        ({"spec": "not json"}, "not JSON"),
        ({"version": VERSION + 1}, f"this GradSeg reads version {VERSION}"),
        ({"state": None}, "checkpoint without weights"),
        ({"format": "other"}, "no GradSeg ModelSpec inside"),
    ],
)
def test_damaged_fields(good: Path, changes: Dict[str, Any], message: str) -> None:
    assert FORMAT == "gradseg-checkpoint"
    with pytest.raises(GradsegError, match=message):
        load_checkpoint(damaged(good, **changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_refused_by_name(good: Path, value: float) -> None:
    raw = torch.load(good, weights_only=True)
    raw["state"]["encoder.layers.3.dw1.weight"][0, 0, 0, 0] = value
    torch.save(raw, good)
    with pytest.raises(GradsegError, match=r"NaN or infinity in encoder\.layers\.3\.dw1\.weight"):
        load_checkpoint(good)


def test_unfinished_grouping_is_refused(tmp_path: Path) -> None:
    network = gradual_network(SPEC)
    set_alpha(network, 0.25)
    save_checkpoint(tmp_path / "gradual.pth", network)
    with pytest.raises(GradsegError, match=r"alpha is 0\.25.* export the finalised checkpoint"):
        load_checkpoint(tmp_path / "gradual.pth")
    set_alpha(network, 0.0)
    save_checkpoint(tmp_path / "gradual.pth", network)
    assert load_checkpoint(tmp_path / "gradual.pth").spec == SPEC


@pytest.fixture(scope="module")
def both_formats() -> dict[str, bytes]:
    """A small state dict as PyTorch writes it today (a zip) and as it did before 1.6 (a bare pickle)."""
    found = {}
    for name, zipped in (("zip", True), ("legacy", False)):
        stream = io.BytesIO()
        torch.save({"weight": torch.ones(3, 2)}, stream, _use_new_zipfile_serialization=zipped)
        found[name] = stream.getvalue()
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["zip", "legacy"]), st.floats(0, 1), st.booleans(), st.integers(0, 255))
def test_any_damage_is_one_line(
    both_formats: dict[str, bytes], tmp_path: Path, name: str, place: float, cut: bool, value: int
) -> None:
    content = both_formats[name]
    at = min(len(content) - 1, int(place * len(content)))
    damaged = content[:at] if cut else content[:at] + bytes([value]) + content[at + 1 :]
    path = tmp_path / "damaged.pth"
    path.write_bytes(damaged)
    try:
        read_raw(path)  # a flipped weight is no damage that a reader could see
    except GradsegError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(16, 3, 3, 3).to_sparse(), "no plain tensor of real numbers"),
        (torch.ones(16, 3, 3, 3, device="meta"), "no plain tensor of real numbers"),
        (torch.ones(16, 3, 3, 3, dtype=torch.complex64), "no plain tensor of real numbers"),
        (torch.ones(16, 3, 3, 3, dtype=torch.int64), "no plain tensor of real numbers"),
        ("text", "no plain tensor of real numbers"),
    ],
)
def test_odd_tensors_are_named(good: Path, value: object, message: str) -> None:
    raw = torch.load(good, weights_only=True)
    raw["state"]["encoder.initial_block.conv.weight"] = value
    torch.save(raw, good)
    with pytest.raises(GradsegError, match=f"encoder.initial_block.conv.weight is {message}"):
        load_checkpoint(good)


def test_negative_variance_and_nameless_weights_are_said(good: Path) -> None:
    raw = torch.load(good, weights_only=True)
    raw["state"]["encoder.initial_block.bn.running_var"][0] = -1
    torch.save(raw, good)
    with pytest.raises(GradsegError, match=r"negative variance in encoder\.initial_block\.bn\.running_var"):
        load_checkpoint(good)
    raw["state"] = {5: torch.ones(2)}
    torch.save(raw, good)
    with pytest.raises(GradsegError, match="names that are no text"):
        load_checkpoint(good)
