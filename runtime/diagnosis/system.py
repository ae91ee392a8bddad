"""What the doctor may ask of a machine: files, commands, Python's packages, and probes in processes of their own.

Every answer comes in bounded time and none raises: what is not there, not readable, broken or hanging is a value.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from gradseg.commands import ROOT
from gradseg.runtime.diagnosis.probes import MARK

COMMAND_S = 10.0
PROBE_S = 90.0  # `import torch` from a cold SD card
SUPPRESSED = (OSError, ValueError)
# pip's packages that matter here, by the beginning of their names
PACKAGES = ("numpy", "opencv-", "onnxruntime", "openvino", "tensorrt", "cuda-", "pycuda", "torch", "gradseg", "rich")


class System:
    """This machine. Tests put recorded machines in its place.

    Args:
        root: where /etc, /proc, /sys and /dev are looked for.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, path: str) -> str:
        """A small file's text without the NULs that end device-tree entries; "" if it cannot be read."""
        with contextlib.suppress(*SUPPRESSED):
            return self._at(path).read_bytes()[:100_000].decode("utf-8", "replace").rstrip("\0").strip()
        return ""

    def paths(self, pattern: str) -> List[str]:
        """Absolute paths of what matches a wildcard, in the order of the numbers in their names."""
        with contextlib.suppress(*SUPPRESSED):
            found = ["/" + path.relative_to(self._root).as_posix() for path in self._root.glob(pattern.lstrip("/"))]
            return sorted(found, key=lambda path: ([int(n) for n in re.findall(r"\d+", path)], path))
        return []

    def readable(self, path: str) -> bool:
        """Whether this user may open a device for reading and writing."""
        return os.access(str(self._at(path)), os.R_OK | os.W_OK)

    def run(self, *command: str) -> str:
        """What a command prints on stdout, whatever its exit code; "" if it is not there or takes too long."""
        try:
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=COMMAND_S)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.decode("utf-8", "replace").strip()

    def probe(self, name: str, argument: Optional[str] = None) -> Dict[str, Any]:
        """What runtime/diagnosis/probes.py finds; {"error"} also for one that crashed or did not come back."""
        script = Path(__file__).resolve().with_name("probes.py")
        return run_probe([sys.executable, str(script), name, *([argument] if argument is not None else [])], PROBE_S)

    def python(self) -> Dict[str, Any]:
        """The interpreter: version, executable, whether and what kind of environment it runs in."""
        venv, config, text = sys.prefix != sys.base_prefix, Path(sys.prefix) / "pyvenv.cfg", None
        with contextlib.suppress(*SUPPRESSED):
            text = config.read_text("utf-8") if venv else None
        sees = None if text is None else re.search(r"include-system-site-packages\s*=\s*true", text, re.I) is not None
        return {
            "version": platform.python_version(),
            "executable": os.path.normpath(sys.executable),  # not resolved: an environment is known by its path
            "venv": venv,
            "venv_config": None if text is None else str(config),
            "system_packages": sees,  # whether it sees the system's; None outside such an environment
            "conda": (Path(sys.prefix) / "conda-meta").is_dir(),
            "managed": (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file(),
        }

    def packages(self) -> Dict[str, str]:
        """Version by name of those of pip's packages that matter here; of two of a name, the one imported."""
        from importlib import metadata

        found: Dict[str, str] = {}
        for distribution in metadata.distributions():
            with contextlib.suppress(KeyError, TypeError, AttributeError, *SUPPRESSED):  # damaged metadata
                name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
                if name.startswith(PACKAGES):
                    found.setdefault(name, distribution.version)
        return found

    def host(self) -> Dict[str, Any]:
        """Architecture, operating system, cores, free disk space in bytes of the working directory, C compiler.

        clone: the folder of the clone that this file belongs to; None in an installed wheel.
        """
        free: Optional[int] = None
        with contextlib.suppress(*SUPPRESSED):
            free = shutil.disk_usage(".").free
        compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"  # as setuptools finds it
        return {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "disk_free": free,
            "compiler": shutil.which(compiler.split()[0]),
            "clone": str(ROOT) if (ROOT / "setup.py").is_file() else None,
        }

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")


def run_probe(command: Sequence[str], seconds: float) -> Dict[str, Any]:
    """The JSON object that `command` prints after `MARK`, or {"error": how it ended without one}."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"hangs: no answer within {seconds:.0f} s"}
    except OSError as error:
        return {"error": f"cannot be asked: {error}"}
    for line in reversed(done.stdout.decode("utf-8", "replace").splitlines()):
        if line.startswith(MARK):
            with contextlib.suppress(ValueError):
                found = json.loads(line[len(MARK) :])
                return found if isinstance(found, dict) else {"error": "gave no answer"}
    if done.returncode < 0:
        known = {int(number): number.name for number in signal.Signals}
        return {"error": f"crashes ({known.get(-done.returncode, f'signal {-done.returncode}')})"}
    said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return {"error": f"ended with exit code {done.returncode}: {said[-1].strip()[:200] if said else 'no message'}"}
