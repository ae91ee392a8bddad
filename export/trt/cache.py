"""Kernel timings kept between builds in one file that several processes may share. Python 3.8.

A second build on the same GPU with the same TensorRT then takes seconds instead of minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, locked


class TimingCache:
    """Attaches the timings in a file to a builder configuration; `save` adds the new ones to the file.

    A file that this TensorRT on this GPU cannot use is left as it is, with a warning among the notes of `save`.

    Args:
        path: the file, made if it is not there; None: no file, and nothing is done.
        config: an IBuilderConfig.

    Raises GradsegError if the file cannot be read.
    """

    def __init__(self, path: Optional[str], config: Any) -> None:
        self._path = None if path is None else Path(path)
        self._config = config
        self._warning = ""
        if self._path is None:
            return
        data = b""
        if self._path.exists():
            with locked(f"{self._path}.lock"):  # the file itself is replaced
                data = _read(self._path)
        self._cache = _cache_from(config, data)  # TensorRT keeps no reference of its own until the plan is built
        # strict: timings of another GPU would be taken for this one's
        if self._cache is None or not config.set_timing_cache(self._cache, False):
            self._warning = (
                f"warning: --timing-cache {self._path}: not one that this TensorRT on this GPU can use (foreign or "
                "damaged); built without it and left as it is; delete it or name another file"
            )
            self._path = None

    def save(self) -> List[str]:
        """Merges what another process has saved meanwhile, writes the file, returns lines for the user.

        A file that cannot be written any more costs a warning, not the plan.
        """
        if self._path is None:
            return [self._warning] if self._warning else []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with locked(f"{self._path}.lock"):
                self._merge(_read(self._path))
                data = bytes(self._cache.serialize())
                with atomic_path(self._path) as temporary:
                    temporary.write_bytes(data)
        except (GradsegError, OSError) as error:
            return [f"warning: --timing-cache {self._path}: not saved ({error})"]
        return [f"timing cache {self._path}: {len(data) / 1e3:.0f} kB"]

    def _merge(self, data: bytes) -> None:
        """Adds the timings in the file to ours; ours win where both have one."""
        if not data:
            return
        other = _cache_from(self._config, data)
        if other is None or not self._cache.combine(other, False):
            # it was ours to use when the build began, so another TensorRT has written it since
            raise GradsegError("another TensorRT or GPU has replaced it meanwhile; it is left as it is")


def _cache_from(config: Any, data: bytes) -> Any:
    """An ITimingCache of serialised timings, None if they are not some; b"" gives an empty one.

    For timings that it cannot use TensorRT returns nothing or, with a warning in its log, an empty cache.
    """
    cache = config.create_timing_cache(data)
    if not data or cache is None:
        return cache
    kept = bytes(cache.serialize())
    empty = bytes(config.create_timing_cache(b"").serialize())
    return cache if len(kept) > len(empty) or kept == data else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise GradsegError(f"--timing-cache {path}: cannot be read ({error.strerror}); name another file") from error
