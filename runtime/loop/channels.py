"""How the loop's threads hand frames to each other and stop each other. Every wait can be ended from outside."""

from __future__ import annotations

import signal
import threading
from collections import deque
from typing import Any, Deque, Dict, Generic, List, Optional, Tuple, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded first-in first-out queue that can be closed (what is inside still comes out) or aborted (it does not).

    Unlike `queue.Queue`, closing wakes everyone who waits, on either side.
    """

    def __init__(self, capacity: int) -> None:
        self._items: Deque[T] = deque()
        self._capacity = capacity
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Waits for room. False if the channel is closed: the item was not taken."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def put_newest(self, item: T) -> Optional[T]:
        """Never waits. Puts the item in; returns the oldest one if it had to go to make room, else None.

        On a closed channel the item itself comes back.
        """
        with self._changed:
            if self._closed:
                return item
            displaced = self._items.popleft() if len(self._items) >= self._capacity else None
            self._items.append(item)
            self._changed.notify_all()
            return displaced

    def get(self, timeout_s: Optional[float] = None) -> Optional[T]:
        """Waits for an item. None when the channel is closed and empty; TimeoutError after `timeout_s` seconds."""
        with self._changed:
            while not self._items and not self._closed:
                if not self._changed.wait(timeout_s):
                    raise TimeoutError
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """No more items go in; those inside still come out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> int:
        """Closes and throws away what is inside; returns how many items that were."""
        with self._changed:
            self._closed = True
            count = len(self._items)
            self._items.clear()
            self._changed.notify_all()
            return count


class Stop:
    """Why the loop ends. An error outranks a polite reason such as the end of the source; of a kind the first stays.

    Any thread may ask, and a signal handler too: reasons are only appended, which is atomic, so no lock is taken.
    """

    def __init__(self) -> None:
        self._polite: List[Tuple[str, int, Optional[BaseException]]] = []
        self._broken: List[Tuple[str, int, Optional[BaseException]]] = []

    def request(self, reason: str, code: int = 0, error: Optional[BaseException] = None) -> None:
        """Asks every stage to end. `code`: for the process to exit with. A KeyboardInterrupt counts as polite."""
        broken = error is not None and not isinstance(error, KeyboardInterrupt)
        (self._broken if broken else self._polite).append((reason, code, error))

    def _first(self) -> Tuple[Optional[str], int, Optional[BaseException]]:
        return next(iter(self._broken or self._polite), (None, 0, None))

    @property
    def reason(self) -> Optional[str]:
        """None while nobody has asked."""
        return self._first()[0]

    @property
    def code(self) -> int:
        """The exit code that goes with the reason."""
        return self._first()[1]

    @property
    def error(self) -> Optional[BaseException]:
        """What broke, if something did."""
        return self._first()[2]


class Signals:
    """While entered: the first SIGINT, SIGTERM or SIGHUP asks for a polite end, a second SIGINT interrupts at once.

    Python delivers signals to the main thread only; elsewhere entering does nothing. held: while it is set no signal
    interrupts, as files are being finished.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._old: Dict[int, Any] = {}
        self._interrupted, self.held = False, False

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            ignored = number is not None and signal.getsignal(number) is signal.SIG_IGN
            if number is not None and not (name == "SIGHUP" and ignored):  # nohup means it
                self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT and self._interrupted and not self.held:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self._stop.request(signal.Signals(number).name, 128 + number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
