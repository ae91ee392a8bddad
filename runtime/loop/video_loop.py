"""The video loop. The only file that knows the order source → preprocess → engine → postprocess → overlay → sink.

Three threads overlap: capture, inference (with pre- and postprocessing), and the caller's own, which draws and writes.
Five or six frame slots go round between them; nothing else is allocated per frame by the loop.

    free ──capture──▶ ready ──inference──▶ done ──overlay, sinks──▶ free

Without a sink frames go from inference straight to `free`.
A live source never waits: if `ready` still holds a frame, the newer one takes its place and the older counts as
dropped. Any other source waits for room, so that nothing is lost. A slow sink slows inference down, not capture.

An engine that can take the next frame while it works on one (`Overlapping`) gets it early, if the source is not live
and the frame is already there: more frames per second. On a live source it would only make a frame wait inside the
engine that a newer one could have replaced; there each frame is finished before the next is taken.

A file is decoded as fast as the engine takes its frames. Where the engine's threads take every core and it can lend one
(`Lending`), capture borrows it for each frame: a thread of the engine that were pushed aside amid its work would hold
up the others.

Ending: the source ends, a limit is reached, or a signal comes, and what is under way is finished; or a stage raises,
and the others are woken and stop. In every case the sinks are closed, and the outcome says why.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Callable, Optional, Sequence

from gradseg.base.conditions import usable_cores
from gradseg.runtime.engines.protocol import Engine, lending
from gradseg.runtime.loop.channels import Channel, Signals, Stop
from gradseg.runtime.loop.inference import Inference, Slot
from gradseg.runtime.loop.report import STAGES, CpuTimes, Latencies, Outcome, exit_code_of, opencv_beside
from gradseg.runtime.sinks.overlay import Overlay
from gradseg.runtime.sinks.sink import Sink
from gradseg.runtime.sources.source import Captured, Source

SLOTS = 5  # one each: being captured, ready, in inference, done, being written; one more if two are in inference
POLL_S = 0.1  # how often the waiting main thread looks at limits
GRACE_S = 3.0  # how long a source may take to come back from its last read


class VideoLoop:
    """One run of an engine over a source.

    Args:
        engine, source: opened by the caller, who closes the engine; the loop closes the source.
        sinks: closed by the loop, whatever happens.
        overlay: draws the picture for the sinks that want one.
        max_frames: end after that many results. duration_s: end after that many seconds.
        on_frame: called per result with (total_ns, frames_done, frames_dropped), for the live line.
    """

    def __init__(
        self,
        engine: Engine,
        source: Source,
        sinks: Sequence[Sink] = (),
        overlay: Optional[Overlay] = None,
        max_frames: Optional[int] = None,
        duration_s: Optional[float] = None,
        on_frame: Optional[Callable[[int, int, int], None]] = None,
    ) -> None:
        self.engine, self.source, self.sinks = engine, source, list(sinks)
        self._overlay = overlay if any(sink.wants_image for sink in sinks) else None
        self._max_frames, self._duration_s, self._on_frame = max_frames, duration_s, on_frame
        self._inference = Inference(engine, (int(source.size_hw[0]), int(source.size_hw[1])))
        self._ahead = self._inference.overlaps and not source.live
        self._lending = None if source.live else lending(engine, usable_cores())
        self.stop = Stop()
        self.outcome = Outcome()
        self._latencies = {stage: Latencies() for stage in STAGES}
        slots = SLOTS + int(self._ahead)
        self._free: Channel[Slot] = Channel(slots)
        self._ready: Channel[Slot] = Channel(1)
        self._done: Channel[Slot] = Channel(1)
        self._cpu = CpuTimes()
        self._reading, self._hurry, self._late = False, False, 0
        # not Thread.is_alive: before Python 3.13 an interrupted join makes a running thread look ended
        self._over = {"capture": threading.Event(), "inference": threading.Event()}
        for _ in range(slots):
            self._free.put(Slot())

    def run(self) -> Outcome:
        """Runs to the end and never raises for what happens on the way: see `Outcome.error` and `exit_code`.

        SIGINT, SIGTERM and SIGHUP end the run politely while it lasts, if this is the process's main thread.
        """
        with Signals(self.stop) as signals, opencv_beside(self.engine):
            self._cpu.start()
            started = time.perf_counter_ns()
            self._deadline = None if self._duration_s is None else started + int(self._duration_s * 1e9)
            for stage, work, name in (("source", self._capture, "capture"), ("inference", self._infer, "inference")):
                threading.Thread(target=self._stage, args=(stage, work), name=name, daemon=True).start()
            try:
                self._stage("sink", self._drain)
                self.outcome.duration_s = (time.perf_counter_ns() - started) / 1e9
                self._wait()
                self._cpu.stop()
            except KeyboardInterrupt:  # another Ctrl-C while the stages end: what is written is kept all the same
                self.stop.request("SIGINT", 130)
            finally:
                signals.held = True
            self._close_sinks()
            signals.held = False
            self._finish()
        return self.outcome

    def _stage(self, name: str, work: Callable[[], None]) -> None:
        """Runs one stage; what it raises becomes the outcome and wakes the others."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 a thread's exception has nobody else to tell
            self._hurry = self._hurry or isinstance(error, KeyboardInterrupt)
            self._fail(f"{name}: {str(error) or type(error).__name__}", error)
            if name != "source":  # frames before a broken source are good: they are finished
                self._ready.abort()
                self._free.abort()
            if name == "sink":
                self._done.abort()
        finally:
            self._cpu.thread_ends(name)
            if name == "source":
                self._ready.close()
                self._over["capture"].set()
            elif name == "inference":
                self._done.close()
                self._over["inference"].set()

    def _fail(self, what: str, error: BaseException) -> None:
        self.stop.request(what, exit_code_of(error), error)
        if self.stop.error is not error:  # something else already ended the run: say this too
            self.outcome.warnings.append(what)

    # -- capture thread ------------------------------------------------------------------------------------------

    def _capture(self) -> None:
        live = self.source.live
        while self.stop.reason is None and not self._out_of_time():
            if not live and self._max_frames is not None and self.outcome.frames_in >= self._max_frames:
                self.stop.request("max frames")
                return
            slot = self._free.get()
            if slot is None:
                return
            self._reading = True
            captured = self._read(slot)
            self._reading = False
            if captured is None:
                self.stop.request("end of source")
                return
            slot.frame, slot.t_capture = captured
            slot.captured = time.perf_counter_ns()
            slot.index = self.outcome.frames_in
            self.outcome.frames_in += 1
            self._latencies["capture"].add(slot.captured - slot.t_capture)
            if not live:
                if not self._ready.put(slot):
                    return
                continue
            displaced = self._ready.put_newest(slot)
            if displaced is not None:
                self.outcome.frames_dropped += 1
                self._free.put(displaced)

    def _read(self, slot: Slot) -> Optional[Captured]:
        """The next frame. Decoding it takes a core: the engine gives one rather than lose it amid its work."""
        if self._lending is None:
            return self.source.read(slot.frame)
        self._lending.borrow_core()
        try:
            return self.source.read(slot.frame)
        finally:
            self._lending.return_core()

    def _out_of_time(self) -> bool:
        if self._deadline is not None and time.perf_counter_ns() >= self._deadline:
            self.stop.request("duration")
            return True
        return False

    # -- inference thread ----------------------------------------------------------------------------------------

    def _infer(self) -> None:
        if self._ahead:
            self._infer_ahead()
            return
        taken = 0
        while True:
            slot = self._ready.get()
            if slot is None:
                return
            self._inference.run(slot)
            taken += 1
            if not self._deliver(slot):
                return
            if self.source.live and taken == self._max_frames:
                self.stop.request("max frames")
                self._late = self._ready.abort()  # what came too late counts as dropped
                self._free.abort()
                return

    def _infer_ahead(self) -> None:
        """Starts a frame that is already waiting before it finishes the one under way; never waits for one to come."""
        under_way: Optional[Slot] = None
        while True:
            slot = self._ready.get() if under_way is None else self._waiting()
            if slot is not None:
                self._start(slot, under_way)
            elif under_way is None:
                return
            if under_way is not None:
                self._inference.finish(under_way)
                if not self._deliver(under_way):
                    if slot is not None:
                        self._inference.finish(None)  # nobody wants it any more; the engine is left as it was found
                    return
            under_way = slot

    def _waiting(self) -> Optional[Slot]:
        try:
            return self._ready.get(0)
        except TimeoutError:
            return None

    def _start(self, slot: Slot, under_way: Optional[Slot]) -> None:
        """Gives the engine a frame. If that fails, the one under way is good: it is delivered first."""
        try:
            self._inference.start(slot)
        except BaseException:
            if under_way is not None:
                with contextlib.suppress(RuntimeError):  # an engine that broke lost that frame too
                    self._inference.finish(under_way)
                    self._deliver(under_way)
            raise

    def _deliver(self, slot: Slot) -> bool:
        """Hands over to the caller's thread; where nothing is drawn or written, that would only cost time."""
        if self.sinks:
            return self._done.put(slot)
        self._write(slot)
        return self._free.put(slot)

    # -- the caller's thread -------------------------------------------------------------------------------------

    def _drain(self) -> None:
        stopping_since: Optional[int] = None
        while True:
            try:
                slot = self._done.get(POLL_S)
            except TimeoutError:
                self._out_of_time()
                now = time.perf_counter_ns()
                stopping_since = None if self.stop.reason is None else stopping_since or now
                if self._reading and stopping_since is not None and now - stopping_since > GRACE_S * 1e9:
                    self._ready.close()  # the source hangs in a read: end without it
                continue
            if slot is None:
                return
            self._write(slot)
            self._free.put(slot)

    def _write(self, slot: Slot) -> None:
        begin = time.perf_counter_ns()
        image = None
        if self._overlay is not None:
            image = self._overlay(slot.frame, slot.labels)
            drawn = time.perf_counter_ns()
            self._latencies["overlay"].add(drawn - begin)
            begin = drawn
        for sink in self.sinks:
            sink.write(image, slot.labels, slot.index, slot.t_capture)
        if self.sinks:
            self._latencies["sink"].add(time.perf_counter_ns() - begin)
        for stage in ("wait", "preprocess", "infer", "postprocess", "total"):
            self._latencies[stage].add(getattr(slot, stage))
        self.outcome.frames_done += 1
        if self._on_frame is not None:
            self._on_frame(slot.total, self.outcome.frames_done, self.outcome.frames_dropped)

    def _wait(self) -> None:
        patience = int(GRACE_S / POLL_S) + 1 if self._hurry else -1
        while patience and not self._over["inference"].wait(POLL_S):  # in pieces, so that another Ctrl-C is heard
            patience -= 1
        self._over["capture"].wait(GRACE_S)

    def _close_sinks(self) -> None:
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 one sink's trouble must not keep the others open
                self._fail(f"sink: {error}", error)

    def _finish(self) -> None:
        """Closes the source and says how it went."""
        outcome, stop = self.outcome, self.stop
        outcome.frames_dropped += self._late
        outcome.hung = [name for name, over in self._over.items() if not over.is_set()]
        if outcome.hung:
            outcome.warnings.append(f"the {' and '.join(outcome.hung)} thread did not come back and was left alone")
        if "capture" not in outcome.hung:
            try:
                self.source.close()
            except KeyboardInterrupt:
                outcome.warnings.append("the source was interrupted while it was being closed")
        if self.source.warning and self.source.warning not in str(stop.error):
            outcome.warnings.append(self.source.warning)
        outcome.reason, outcome.exit_code, outcome.error = stop.reason or "end of source", stop.code, stop.error
        outcome.latency_ms = {stage: self._latencies[stage].summary() for stage in STAGES}
        outcome.cpu_ms = self._cpu.per_frame(outcome.frames_done)
