"""The timing cache: locked, merged, and what happens to a file that is not one. The library is a stand-in."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path
from typing import Any, List, Optional

import pytest
from export_toys import HW
from trt_surfaces import VERSIONS, make, surface
from trt_toys import network_of

from gradseg.base.errors import GradsegError
from gradseg.export.trt.build import build_plan
from gradseg.export.trt.cache import TimingCache
from gradseg.export.trt.options import BuildOptions, check_options

HEAD = b"TIMES:"


class Cache:
    """Timings as a set of names; serialised as HEAD and JSON."""

    def __init__(self, names: List[str]) -> None:
        self.names = set(names)

    def serialize(self) -> bytes:
        return HEAD + json.dumps(sorted(self.names)).encode()

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.names |= other.names
        return True


class Config:
    """Of an IBuilderConfig what the cache touches. foreign: what it makes of bytes that are not its own."""

    def __init__(self, foreign: str = "empty", fits: bool = True) -> None:
        self.foreign, self.fits = foreign, fits
        self.attached: Optional[Cache] = None

    def create_timing_cache(self, data: bytes) -> Optional[Cache]:
        if data.startswith(HEAD):
            return Cache(json.loads(data[len(HEAD) :]))
        return None if data and self.foreign == "none" else Cache([])

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.attached = cache
        return self.fits


def read(path: Path) -> List[str]:
    return list(json.loads(path.read_bytes()[len(HEAD) :]))


def test_no_file_and_nothing_is_done() -> None:
    config = Config()
    assert TimingCache(None, config).save() == []
    assert config.attached is None


def test_a_new_file_is_made_and_used_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.cache"
    first = Config()
    cache = TimingCache(str(path), first)
    assert first.attached is not None and first.attached.names == set()
    first.attached.names.add("conv")
    assert cache.save() == [f"timing cache {path}: 0 kB"]
    second = Config()
    TimingCache(str(path), second)
    assert second.attached is not None and second.attached.names == {"conv"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["t.cache", "t.cache.lock"]


def test_what_another_process_saved_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    path.write_bytes(Cache(["old"]).serialize())
    ours, theirs = Config(), Config()
    first, second = TimingCache(str(path), ours), TimingCache(str(path), theirs)
    assert ours.attached is not None and theirs.attached is not None
    ours.attached.names.add("ours")
    theirs.attached.names.add("theirs")
    second.save()
    first.save()
    assert read(path) == ["old", "ours", "theirs"]


@pytest.mark.parametrize("foreign", ["none", "empty"])
@pytest.mark.parametrize("data", [b"not a cache at all, but long", b"x"])
def test_a_foreign_file_is_one_warning_and_left_as_it_is(tmp_path: Path, foreign: str, data: bytes) -> None:
    path = tmp_path / "t.cache"
    path.write_bytes(data)
    config = Config(foreign)
    (warning,) = TimingCache(str(path), config).save()
    assert warning.startswith(f"warning: --timing-cache {path}: not one that this TensorRT on this GPU can use")
    assert "left as it is" in warning
    assert config.attached is None and path.read_bytes() == data


def test_timings_of_another_gpu_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    path.write_bytes(Cache(["sm75"]).serialize())
    (warning,) = TimingCache(str(path), Config(fits=False)).save()
    assert "left as it is" in warning and read(path) == ["sm75"]


def test_a_file_that_became_foreign_while_building_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    cache = TimingCache(str(path), Config())
    path.write_bytes(b"of another TensorRT's making")
    (warning,) = cache.save()
    assert warning.startswith(f"warning: --timing-cache {path}: not saved (another TensorRT or GPU has replaced it")
    assert path.read_bytes() == b"of another TensorRT's making"


def test_an_empty_cache_of_ours_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    TimingCache(str(path), Config()).save()
    config = Config()
    assert TimingCache(str(path), config).save() == [f"timing cache {path}: 0 kB"]
    assert config.attached is not None


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(GradsegError, match="is a directory"):
        check_options(BuildOptions("fp16", timing_cache=str(tmp_path)), None)
    check_options(BuildOptions("fp16", timing_cache=str(tmp_path / "new" / "t.cache")), None)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradsegError, match=r"--timing-cache .*: cannot be read \(Is a directory\); name another file"):
        TimingCache(str(tmp_path), Config())


def test_a_file_that_can_no_longer_be_written_costs_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    cache = TimingCache(str(path), Config())
    path.mkdir()
    (warning,) = cache.save()
    assert warning.startswith(f"warning: --timing-cache {path}: not saved (")


def test_those_that_save_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"

    def add(name: str) -> None:
        config = Config()
        cache = TimingCache(str(path), config)
        assert config.attached is not None
        config.attached.names.add(name)
        cache.save()

    # the lock belongs to the file as each opens it, so threads exclude each other as processes do
    workers = [threading.Thread(target=add, args=(f"w{index}",)) for index in range(6)]
    with open(f"{path}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for worker in workers:
            worker.start()
        assert not path.exists()  # all of them wait
    for worker in workers:
        worker.join(60)
    assert read(path) == sorted(f"w{index}" for index in range(6))


# ---- through the builder, on each version's surface


@pytest.mark.parametrize("version", [version for version in VERSIONS if not version.startswith("rtx")])
def test_every_classic_version_has_the_calls(tmp_path: Path, version: str) -> None:
    path = tmp_path / "t.cache"
    path.write_bytes(b"timings of before")
    trt = surface(version)
    network_of(trt)
    sizes = iter([b"many timings", b"few", b"many timings", b"few", b"saved"])
    trt.returns["ITimingCache.serialize"] = lambda: make(trt, "IHostMemory")
    trt.returns["IHostMemory.bytes"] = lambda: next(sizes, b"plan")
    options = BuildOptions("fp16", timing_cache=str(path))
    built = build_plan(b"onnx", options, "net.onnx", ("tensorrt", trt), HW)
    assert built.notes == (f"timing cache {path}: 0 kB",)
    assert path.read_bytes() == b"saved" and built.plan == b"plan"
    assert [ignore for _, ignore in trt.called("IBuilderConfig.set_timing_cache")] == [False]
    assert [ignore for _, ignore in trt.called("ITimingCache.combine")] == [False]
    names: List[Any] = [name for name, _ in trt.log]
    assert names.index("IBuilderConfig.set_timing_cache") < names.index("Builder.build_serialized_network")


def test_a_build_that_fails_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    trt = surface("10.3.0", {"Builder.build_serialized_network": None})
    network_of(trt)
    with pytest.raises(GradsegError, match="cannot build it: no reason given"):
        build_plan(b"onnx", BuildOptions("fp16", timing_cache=str(path)), "net.onnx", ("tensorrt", trt), HW)
    assert not path.exists()
