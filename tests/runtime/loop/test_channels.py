"""What the loop's threads share: channels that wake everyone, and the reason to stop."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gradseg.base.errors import GradsegError
from gradseg.runtime.loop.channels import Channel, Stop


def test_closing_wakes_both_sides() -> None:
    for end in ("close", "abort"):
        full: Channel[int] = Channel(1)
        empty: Channel[int] = Channel(1)
        assert full.put(1)
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda: results.append(full.put(2)), daemon=True),  # noqa: B023
            threading.Thread(target=lambda: results.append(empty.get()), daemon=True),  # noqa: B023
        ]
        for thread in threads:
            thread.start()
        for channel in (full, empty):
            getattr(channel, end)()
        for thread in threads:
            thread.join(30)
        assert sorted(map(str, results)) == ["False", "None"]
        assert full.get() == (1 if end == "close" else None)


def test_put_newest_displaces_the_oldest() -> None:
    channel: Channel[int] = Channel(1)
    assert channel.put_newest(1) is None and channel.put_newest(2) == 1
    assert channel.get() == 2
    with pytest.raises(TimeoutError):
        channel.get(0.001)
    channel.close()
    assert channel.put_newest(3) == 3 and channel.get() is None and channel.abort() == 0


def test_first_reason_stays_unless_something_broke() -> None:
    stop = Stop()
    stop.request("end of source")
    stop.request("SIGINT", 130)
    assert (stop.reason, stop.code) == ("end of source", 0)
    error = ValueError("x")
    stop.request("sink: x", 1, error)
    stop.request("inference: y", 2, ValueError("y"))
    assert (stop.reason, stop.code, stop.error) == ("sink: x", 1, error)


def test_an_error_wins_over_a_signal_and_a_ctrl_c_is_none() -> None:
    stop, error = Stop(), GradsegError("disk full")
    assert (stop.reason, stop.code, stop.error) == (None, 0, None)
    stop.request("SIGINT", 130)
    stop.request("sink: ", 130, KeyboardInterrupt())
    assert (stop.reason, stop.code, stop.error) == ("SIGINT", 130, None)
    stop.request("sink: disk full", 2, error)
    stop.request("end of source")
    assert (stop.reason, stop.code, stop.error) == ("sink: disk full", 2, error)


def test_a_polite_reason_cannot_overwrite_an_error_that_comes_between() -> None:
    """Whatever a request reads of the state first, an error given meanwhile by another thread stays."""
    error = ValueError("x")

    class Interleaved(Stop):
        asked = False

        def __getattribute__(self, name: str) -> Any:
            value = object.__getattribute__(self, name)
            if name in ("reason", "_polite") and not Interleaved.asked:
                Interleaved.asked = True
                self.request("inference: x", 1, error)
            return value

    stop = Interleaved()
    stop.request("end of source")
    assert Interleaved.asked and (stop.reason, stop.code, stop.error) == ("inference: x", 1, error)
