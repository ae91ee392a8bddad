"""Ranges files that are wrong, each refused in one line naming file, tensor and field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from export_toys import one_torch_thread  # noqa: F401
from ranges_toys import edit, ranges

from gradseg.base.errors import GradsegError
from gradseg.calibration.ranges.ranges_file import RangesFile


@pytest.fixture
def written(tmp_path: Path) -> Path:
    ranges().write(tmp_path / "ranges.json")
    return tmp_path / "ranges.json"


def entry_of(raw: Dict[str, Any]) -> Any:
    return raw["tensors"][2]


def remove(key: str) -> Callable[[Dict[str, Any]], None]:
    return lambda raw: raw.pop(key)


def in_tensor(**values: Any) -> Callable[[Dict[str, Any]], None]:
    return lambda raw: entry_of(raw).update(values)


def in_target(target: str, **values: Any) -> Callable[[Dict[str, Any]], None]:
    return lambda raw: entry_of(raw)["targets"][target].update(values)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: raw.update(format="other"), "not a ranges file .format is 'other', not 'gradseg-ranges'"),
        (lambda raw: raw.update(version=2), "version 2; this GradSeg reads 1"),
        (lambda raw: raw.update(version=True), "version True"),
        *[(remove(key), f"field {key} is missing") for key in ("model", "method", "equalised", "tensors")],
        (remove("channel_means"), "field channel_means is missing"),
        (lambda raw: raw.update(tensors={}), "field tensors is {}; expected a list"),
        (lambda raw: raw.update(power_of_two=1), "field power_of_two is 1; expected true or false"),
        (lambda raw: raw.update(method="best"), "field method is 'best'; one of minmax, percentile, entropy, mse"),
        (lambda raw: raw["model"].pop("fingerprint"), "field model: fingerprint is missing"),
        (lambda raw: raw["channel_means"].update(x=[1, None]), "channel_means of x: expected a list of finite numbers"),
        (lambda raw: raw["tensors"].append(3), "tensor number [0-9]+: is 3; expected an object"),
        (lambda raw: entry_of(raw).pop("tensor"), "tensor number 3: field tensor is null"),
        (lambda raw: raw["tensors"].append(entry_of(raw)), "tensor NAME is listed twice"),
        *[
            (lambda raw, key=key: entry_of(raw).pop(key), f"tensor NAME: field {key} is missing")
            for key in ("min", "max", "seen_min", "seen_max", "method", "clipped", "calibrated", "targets")
        ],
        (in_tensor(min=math.nan), "tensor NAME: field min is NaN; expected a finite number"),
        (in_tensor(max=math.inf), "tensor NAME: field max is Infinity; expected a finite number"),
        (in_tensor(max=1e39), "tensor NAME: field max is 1e[+]39; expected a finite number"),
        (in_tensor(max="3"), 'tensor NAME: field max is "3"; expected a finite number'),
        (in_tensor(max=True), "tensor NAME: field max is true; expected a finite number"),
        (in_tensor(min=5, max=4), "tensor NAME: field min is 5, above max, 4; exchange them"),
        (in_tensor(seen_min=2, seen_max=1), "tensor NAME: field seen_min is 2, above seen_max, 1"),
        (in_tensor(clipped=1.5), "tensor NAME: field clipped is 1.5; it is a share from 0 to 1"),
        (in_tensor(calibrated=[1]), r"tensor NAME: field calibrated is \[1\]; expected \[min, max\]"),
        (in_tensor(method="x"), 'tensor NAME: field method is "x"; one of'),
        (in_tensor(targets=[]), r"tensor NAME: field targets is \[\]; expected an object"),
        (lambda raw: entry_of(raw)["targets"].pop("tidl"), "tensor NAME: targets: field tidl is missing"),
        (lambda raw: entry_of(raw)["targets"].update(cpu=3), "tensor NAME: cpu is 3; expected an object with scale"),
        (lambda raw: entry_of(raw)["targets"]["cpu"].pop("scale"), "tensor NAME: cpu: field scale is missing"),
        (in_target("cpu", scale=0), "tensor NAME: cpu: field scale is 0; it must be above 0"),
        (in_target("trt", scale=-0.1), "tensor NAME: trt: field scale is -0.1; it must be above 0"),
        (in_target("trt", scale=1e-60), "tensor NAME: trt: field scale is 1e-60; it must be above 0 and fit a float32"),
        (in_target("cpu", scale=math.nan), "tensor NAME: cpu: field scale is NaN; expected a finite number"),
        (in_target("tidl", scale=0.3), "tensor NAME: tidl: field scale is 0.3, no power of two; .* are 0.25 and 0.5"),
        (
            in_target("cpu", zero_point=256),
            "tensor NAME: cpu: field zero_point is 256; cpu needs a whole number from 0",
        ),
        (in_target("cpu", zero_point=-1), "tensor NAME: cpu: field zero_point is -1"),
        (in_target("cpu", zero_point=1.5), "tensor NAME: cpu: field zero_point is 1.5"),
        (in_target("trt", zero_point=3), "tensor NAME: trt: field zero_point is 3; trt needs 0, its integers are symm"),
    ],
)
def test_wrong_files_are_refused_in_one_line(written: Path, change: Any, message: str) -> None:
    name = list(ranges().entries)[2]
    edit(written, change)
    with pytest.raises(GradsegError, match=message.replace("NAME", name)) as caught:
        RangesFile.read(written)
    assert str(written) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"[1, 2]", "not a ranges file .format is 'list'"),
        (b"hello", "truncated or not JSON"),
        (b"[" * 100_000, "truncated or not JSON"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(GradsegError, match=message):
        RangesFile.read(tmp_path / "x.json")
    with pytest.raises(GradsegError, match="no such file; expected a ranges file"):
        RangesFile.read(tmp_path / "absent.json")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(written: Path, share: float) -> None:
    data = written.read_bytes().rstrip()
    written.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(GradsegError, match="truncated or not JSON"):
        RangesFile.read(written)
