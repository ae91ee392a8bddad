"""A folder of label images."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.runtime.sinks.sink import Sink


class LabelsSink(Sink):
    """A folder of label images: uint8 class indices at frame size, `{index:06d}.png`, one per frame.

    A folder that holds files of such names is refused: one run's labels must not mix with another's.
    """

    wants_image = False

    def __init__(self, folder: Union[str, Path]) -> None:
        self.folder = Path(folder)
        check_folder(self.folder, "--labels")
        there = sorted(path.name for path in self.folder.iterdir() if re.match(r"\d{6,}\.png$", path.name))
        if there:
            raise GradsegError(
                f"--labels {self.folder}: already holds {len(there)} such images ({there[0]}…), of an earlier run "
                "perhaps; empty it or name another folder"
            )
        self.written = 0

    def write(
        self, image: Optional[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any], index: int, t_capture_ns: int
    ) -> None:
        """See `Sink.write`."""
        ok, png = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        path = self.folder / f"{index:06d}.png"
        if not ok:
            raise RuntimeError(f"cv2.imencode failed for labels {labels.dtype} {labels.shape}")
        try:
            path.write_bytes(png.tobytes())
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise GradsegError(f"cannot write {path}: {error.strerror or error}") from error
        self.written += 1


def check_folder(folder: Path, option: str) -> None:
    """Makes the folder if need be and tries a file in it; raises GradsegError naming the option if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".gradseg-", dir=str(folder))
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise GradsegError(
            f"{option} {folder}: cannot be written ({error.strerror or error}); choose another"
        ) from error
