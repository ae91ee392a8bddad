"""The bar while TensorRT builds, and Ctrl-C: with TensorRT-RTX where it is installed, with stand-ins for the rest."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from typing import Any, Callable, Iterator, List, Tuple

import pytest
from export_toys import HW, exported, one_torch_thread  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from trt_surfaces import make, surface
from trt_toys import find_rtx, network_of

from gradseg.base.errors import run_main
from gradseg.export.trt import progress as trt_progress
from gradseg.export.trt.build import build_plan
from gradseg.export.trt.options import BuildOptions
from gradseg.export.trt.progress import Phases, Progress

TIMEOUT_S = 60


class Terminal(io.StringIO):
    """A terminal that says when something was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        written = super().write(text)
        if "\x1b[K" in text and len(text) > 8:
            self.drawn.set()
        return written


@pytest.fixture(autouse=True)
def handlers_stay(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm")
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGINT, outside)


# ---- how far


def test_nested_phases_make_one_share() -> None:
    phases = Phases()
    assert phases.state() == (0.0, "")
    phases.start("Building", None, 4)
    phases.step("Building", 0)
    assert phases.state() == (0.25, "Building")
    phases.start("Timing", "Building", 10)
    phases.step("Timing", 4)
    assert phases.state() == (0.25 + 0.25 * 0.5, "Timing")
    phases.finish("Timing")
    phases.step("unheard of", 3)
    share, name = phases.state()
    assert (share, name) == (0.375, "Building")  # never falls
    phases.step("Building", 3)
    assert phases.state() == (1.0, "Building")


MOVES = st.lists(
    st.tuples(st.sampled_from(["start", "step", "finish"]), st.sampled_from("abc"), st.integers(-1, 5)), max_size=30
)


@given(moves=MOVES)
def test_the_share_never_falls_and_stays_a_share(moves: List[Tuple[str, str, int]]) -> None:
    phases, before = Phases(), 0.0
    parents = {"a": None, "b": "a", "c": "b"}
    for what, name, number in moves:
        if what == "start":
            phases.start(name, parents[name], number)
        elif what == "step":
            phases.step(name, max(number, 0))
        else:
            phases.finish(name)
        share, _ = phases.state()
        assert before <= share <= 1.0
        before = share


# ---- what is drawn


def progress(version: str, show: bool = True, stream: Any = None) -> Progress:
    trt = surface(version)
    return Progress(trt, make(trt, "IBuilderConfig"), "net.onnx", show, Terminal() if stream is None else stream)


def test_lines() -> None:
    bar = progress("10.3.0")
    bar._phases.start("Building engine", None, 2)
    bar._phases.step("Building engine", 0)
    assert bar.line(80).startswith("net.onnx: [############............]  50 % 0:0")
    assert bar.line(80).endswith("Building engine")
    assert len(bar.line(20)) == 19 and bar.line(0) == ""
    assert progress("8.5.3").line(80).startswith("net.onnx: building 0:0")


@pytest.mark.parametrize("version", ["8.5.3", "10.3.0"])
def test_a_terminal_gets_a_line_that_goes_again(version: str) -> None:
    terminal = Terminal()
    with progress(version, stream=terminal):
        assert terminal.drawn.wait(TIMEOUT_S)
    text = terminal.getvalue()
    assert "\rnet.onnx: " in text and text.endswith("\r\x1b[K")
    assert "\n" not in text and "\x1b[?25" not in text  # the cursor is never hidden


@pytest.mark.parametrize(
    "show, stream, term", [(False, Terminal(), "xterm"), (True, io.StringIO(), "xterm"), (True, Terminal(), "dumb")]
)
def test_nothing_is_drawn_elsewhere(show: bool, stream: Any, term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(trt_progress, "REDRAW_S", 0.001)
    with progress("10.3.0", show, stream) as bar:
        bar._mouth.send(bytes([signal.SIGWINCH]))
    assert stream.getvalue() == "" and not bar._caught


# ---- Ctrl-C


def builds(version: str, during: Callable[[Any, Any], bool]) -> Any:
    """A stand-in whose build calls `during(trt, config)`, which says whether there is a plan."""
    trt = surface(version)
    network_of(trt)

    def build(network: Any, config: Any) -> Any:
        return make(trt, "IHostMemory") if during(trt, config) else None

    trt.returns["Builder.build_serialized_network"] = build
    return trt


def run(trt: Any) -> Any:
    return build_plan(b"onnx", BuildOptions("fp16"), "net.onnx", (trt.__name__, trt), HW)


def until(done: Callable[[], bool]) -> None:
    deadline = time.perf_counter_ns() + TIMEOUT_S * 10**9
    while not done():
        assert time.perf_counter_ns() < deadline, "the signal was not heard"


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0", "rtx-1.7.1"])
def test_ctrl_c_cancels_where_tensorrt_can_be_asked(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    def during(trt: Any, config: Any) -> bool:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 10)
        assert monitor.step_complete("Building engine", 0)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: not monitor.step_complete("Building engine", 1))
        monitor.phase_finish("Building engine")
        return False

    with pytest.raises(KeyboardInterrupt):
        run(builds(version, during))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("version", ["8.5.3", "8.6.1"])
def test_ctrl_c_ends_an_older_build_when_it_is_done(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    def during(trt: Any, config: Any) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return True

    with pytest.raises(KeyboardInterrupt):
        run(builds(version, during))
    assert capsys.readouterr().err == (
        "this TensorRT cannot stop in the middle: ending when the build does; Ctrl-C again ends at once\n"
    )


def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: List[int] = []
    monkeypatch.setattr(trt_progress.os, "_exit", ended.append)

    def during(trt: Any, config: Any) -> bool:
        monitor = config.progress_monitor
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: not monitor.step_complete("x", 0))
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: bool(ended))
        return False

    with pytest.raises(KeyboardInterrupt):
        run(builds("10.3.0", during))
    assert ended == [130]


def test_sigterm_does_what_it_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def main() -> int:
        run(builds("8.5.3", lambda trt, config: os.kill(os.getpid(), signal.SIGTERM) is None))
        return 0

    try:
        with pytest.raises(SystemExit) as caught:
            run_main(main)
        assert caught.value.code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_signals_are_left_alone() -> None:
    plans: List[bytes] = []
    thread = threading.Thread(target=lambda: plans.append(run(builds("10.3.0", lambda trt, config: True)).plan))
    thread.start()
    thread.join(TIMEOUT_S)
    assert plans == [b"plan"]


def test_an_error_of_tensorrts_leaves_no_thread_and_no_handler() -> None:
    def during(trt: Any, config: Any) -> bool:
        raise RuntimeError("of TensorRT's")

    with pytest.raises(RuntimeError, match="of TensorRT's"):
        run(builds("10.3.0", during))
    assert "build progress" not in [thread.name for thread in threading.enumerate()]


def test_tensorrt_rtx_reports_and_stops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kind, trt = find_rtx()
    started: List[str] = []
    plain = Phases.start

    def start(self: Phases, name: str, parent: Any, steps: int) -> None:
        started.append(name)
        plain(self, name, parent, steps)

    monkeypatch.setattr(Phases, "start", start)
    options, data = BuildOptions("fp32", ("sm89",)), exported().SerializeToString()
    build_plan(data, options, "net.onnx", (kind, trt), HW)
    assert len(started) > 3

    def start_and_interrupt(self: Phases, name: str, parent: Any, steps: int) -> None:
        if parent is None:
            os.kill(os.getpid(), signal.SIGINT)
        plain(self, name, parent, steps)

    monkeypatch.setattr(Phases, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_plan(data, options, "net.onnx", (kind, trt), HW)
    assert capsys.readouterr().err == ""
