"""What is shown while TensorRT builds, and how Ctrl-C ends a build. Python 3.8.

The builder runs for minutes inside one call that holds the main thread, so a second thread draws the bar and hears of
signals through a socket (signal.set_wakeup_fd). TensorRT 10 and RTX report phases to an IProgressMonitor, and stop when
it says so; 8.x does neither: the time that has passed is shown, and a second Ctrl-C ends the process.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, TextIO, Tuple

REDRAW_S = 0.25
BAR = 24  # characters
ENDING = [int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Phases:
    """How far a build is, from the phases that TensorRT reports: each has steps, and may run within another's step."""

    def __init__(self) -> None:
        self._open: Dict[str, List[Any]] = {}  # name → [parent, steps, done], outermost first
        self._reached = 0.0

    def start(self, name: str, parent: Optional[str], steps: int) -> None:
        """A phase of `steps` steps begins."""
        self._open[name] = [parent, max(steps, 1), 0]

    def step(self, name: str, done: int) -> None:
        """Step number `done`, from 0, is complete."""
        if name in self._open:
            self._open[name][2] = done + 1

    def finish(self, name: str) -> None:
        """The phase ends."""
        self._open.pop(name, None)

    def state(self) -> Tuple[float, str]:
        """(share of the whole, 0 to 1 and never falling; name of the innermost phase)."""
        phases = list(self._open.items())
        share, scale, parent, innermost = 0.0, 1.0, None, ""
        while True:
            inner = next(((n, p) for n, p in reversed(phases) if p[0] == parent), None)
            if inner is None:
                break
            innermost, (_, steps, done) = inner
            share += scale * min(done, steps) / steps
            scale /= steps
            parent = innermost
        self._reached = max(self._reached, min(share, 1.0))
        return self._reached, innermost


class Progress:
    """Around `build_serialized_network`: a bar on stderr if that is a terminal, and cancelling by signals.

    Ctrl-C, SIGTERM and SIGHUP cancel the build where TensorRT can be asked to; a second one ends the process at once.
    `raise_if_cancelled` afterwards does what the signal would have done.

    Args:
        trt, config: module and IBuilderConfig.
        label: the file's name, before the bar.
        show: False: no bar, even on a terminal.
    """

    def __init__(self, trt: Any, config: Any, label: str, show: bool, stream: Optional[TextIO] = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._show = show and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._label, self._phases = label, Phases()
        self._begin = time.perf_counter_ns()
        self._caught: List[int] = []
        self._drawn = False
        self._stack = contextlib.ExitStack()
        self.monitored = hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor")
        if self.monitored:
            self._monitor = _monitor(trt, self._phases, lambda: not self._caught)  # the config keeps no reference
            config.progress_monitor = self._monitor

    def __enter__(self) -> Progress:
        ear, mouth = socket.socketpair()
        for end in (ear, mouth):
            end.setblocking(False)
        self._ear, self._mouth = ear, mouth
        self._stack.callback(ear.close)
        self._stack.callback(mouth.close)
        self._thread = threading.Thread(target=self._watch, name="build progress", daemon=True)
        self._thread.start()
        self._stack.callback(self._stop)
        self._stack.enter_context(_signals_to(mouth.fileno()))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def raise_if_cancelled(self) -> None:
        """If a signal came: what it would have done before (KeyboardInterrupt, SystemExit)."""
        if self._caught:
            handler = signal.getsignal(self._caught[0])
            if callable(handler):
                handler(self._caught[0], None)
            raise KeyboardInterrupt

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._mouth.send(b"\0")
        self._thread.join()

    def _watch(self) -> None:
        """The second thread: draws, and hears of signals; byte 0 ends it."""
        while True:
            ready = select.select([self._ear], [], [], REDRAW_S)[0]
            for number in self._ear.recv(64) if ready else b"":
                if number == 0:
                    self._erase()
                    return
                if number in ENDING:  # others, such as a resized window's, have handlers of their own
                    self._interrupted(number)
            if self._show:
                self._draw()

    def _interrupted(self, number: int) -> None:
        self._caught.append(number)
        self._erase()
        if len(self._caught) > 1:
            os._exit(128 + number)  # the main thread is in TensorRT's code and cannot be unwound
        if not self.monitored:
            self._say(
                "this TensorRT cannot stop in the middle: ending when the build does; Ctrl-C again ends at once\n"
            )

    def line(self, width: int) -> str:
        """What is drawn: at most `width` - 1 characters."""
        seconds = (time.perf_counter_ns() - self._begin) // 1_000_000_000
        passed = f"{seconds // 60}:{seconds % 60:02d}"
        if self._caught:
            text = f"{self._label}: stopping {passed}"
        elif self.monitored:
            share, phase = self._phases.state()
            filled = int(share * BAR)
            text = f"{self._label}: [{'#' * filled}{'.' * (BAR - filled)}] {int(100 * share):3d} % {passed} {phase}"
        else:
            text = f"{self._label}: building {passed}"
        return text[: max(width - 1, 0)]

    def _draw(self) -> None:
        self._say(f"\r{self.line(shutil.get_terminal_size().columns)}\x1b[K")
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._say("\r\x1b[K")
            self._drawn = False

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone must not end the second thread
            self._stream.write(text)
            self._stream.flush()


def _monitor(trt: Any, phases: Phases, go_on: Callable[[], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return go_on()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


@contextlib.contextmanager
def _signals_to(descriptor: int) -> Iterator[None]:
    """Signals write their number to `descriptor` and raise nothing: no exception may pass through TensorRT's code.

    Only in the main thread, where alone Python handles signals, and only those that Python code handled before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Dict[int, Any] = {}
    wakeup = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    try:
        for number in ENDING:
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda *_: None)
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
