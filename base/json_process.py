"""A child process that answers JSON lines: asked with a time limit, stopped between its turns, ended at the end.

For both sides, torch-free: `JsonProcess` is the asking one's, `answers_alone`, `serve` and `die_with_parent` are the
child's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, TextIO, TypeVar

import gradseg
from gradseg.base.errors import GradsegError

SOURCES = Path(gradseg.__file__).resolve().parent.parent  # what a child needs on PYTHONPATH
PR_SET_PDEATHSIG = 1  # linux/prctl.h
Same = TypeVar("Same", bound="JsonProcess")


class JsonProcess:
    """A child that answers {"do": what, …} on its stdin with one JSON object, a line each.

    A subclass says in `failure` and `ending` what goes wrong. After a failure that is no refusal the child is gone.

    Args:
        command: the program and its arguments.
        environment: all its variables, see `environment_for`; None: as here.
        log: a file that its stderr is appended to; None: as here.
        own_group: Ctrl-C does not reach it, and what it starts is stopped and ended with it.

    Raises:
        OSError: it cannot be started, or the log cannot be written.
    """

    OVERDUE = "no answer to {what} within {seconds:.0f} s"
    PATIENCE_S = 60.0  # for a child that answers no more to end by itself

    def __init__(
        self,
        command: Sequence[str],
        environment: Optional[Dict[str, str]] = None,
        log: Optional[Path] = None,
        own_group: bool = False,
    ) -> None:
        self._log, self._own_group = log, own_group
        with contextlib.ExitStack() as stack:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if log is None else stack.enter_context(open(str(log), "ab")),
                env=environment,
                universal_newlines=True,
                start_new_session=own_group,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def failure(self, reason: str, ended: bool) -> Exception:
        """The exception to raise. reason: one line. ended: whether the child is gone with it."""
        raise NotImplementedError

    def ending(self, what: str, code: int, said: List[str]) -> str:
        """The reason if it ended instead of answering `what`. code: -number for a signal. said: the log's lines."""
        raise NotImplementedError

    def ask(self, what: str, seconds: float, **given: Any) -> Dict[str, Any]:
        """The answer within so many seconds; the child must be awake. Raises a `failure` if there is none."""
        line = json.dumps({"do": what, **given}) + "\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError):  # it has ended, or was closed
            raise self._ended(what) from None
        return self.answer(what, seconds)

    def answer(self, what: str, seconds: float) -> Dict[str, Any]:
        """The next answer, as `ask` gives it."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise self.failure(self.OVERDUE.format(what=what, seconds=seconds), True) from None
        if not line:
            raise self._ended(what)
        answer: Dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self.failure(str(answer["error"]), False)
        return answer

    def pause(self) -> None:
        """Stops all its threads where they are, so that none spins in another's turn."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it at once. Calling it twice is harmless."""
        self._end(0.0)
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self: Same) -> Same:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:  # else its number may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self._own_group:
                    os.killpg(self._process.pid, number)
                else:
                    self._process.send_signal(number)

    def _end(self, patience: float) -> int:
        """Its exit code. It has so many seconds to end by itself; what is left of it is ended."""
        deadline = time.monotonic() + patience
        while not self._is_over() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        return self._process.wait()

    def _is_over(self) -> bool:
        """Whether it has ended; where it can, this leaves it its number, which is its group's too."""
        if self._process.returncode is not None or not hasattr(os, "waitid"):
            return self._process.poll() is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _ended(self, what: str) -> Exception:
        code, said = self._end(self.PATIENCE_S), ""
        self.close()
        with contextlib.suppress(OSError):
            said = "" if self._log is None else self._log.read_text("utf-8", "replace").strip()
        return self.failure(self.ending(what, code, said.splitlines()), True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed meanwhile
            for line in self._process.stdout:
                if line.endswith("\n"):  # else it ended while it wrote
                    self._lines.put(line)
        self._lines.put("")


def environment_for(another_python: bool = False, **changed: str) -> Dict[str, str]:
    """This process's variables, `gradseg` on PYTHONPATH. another_python: without what is set for this one."""
    paths = [str(SOURCES)]
    if not another_python and os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    found = {**os.environ, **changed, "PYTHONPATH": os.pathsep.join(paths)}
    if another_python:
        found.pop("PYTHONHOME", None)
    return found


def answers_alone() -> TextIO:
    """What has been stdout, for the answers; what libraries print, from C++ too, goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def serve(answer: Callable[[Dict[str, Any]], Dict[str, Any]], lines: Iterable[str], out: TextIO) -> None:
    """Answers every line until there is none; whatever fails is an answer too, {"error": one line}, and the child's
    messages say where, unless it is one of our own."""
    for line in lines:
        try:
            found = answer(json.loads(line))
        except Exception as error:  # noqa: BLE001  the asking side decides what a failed request means
            own = isinstance(error, GradsegError)
            if not own:
                traceback.print_exc()
            found = {"error": " ".join(f"{'' if own else f'{type(error).__name__}: '}{error}".split())[:500]}
        print(json.dumps(found), file=out, flush=True)


def die_with_parent(number: int) -> bool:
    """Asks Linux to send this process a signal when its parent ends: it cannot see that while it is stopped.

    False where that cannot be done.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Linux alone has it
        return int(ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)) == 0
    return False
