"""How the loop's threads hand frames to each other and stop each other. Every wait can be ended from outside."""

from __future__ import annotations

import threading
from collections import deque
from typing import Deque, Generic, Optional, TypeVar

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
    """Why the loop ends: the first reason given stays. Takes no lock, so that a signal handler may call it."""

    def __init__(self) -> None:
        self.reason: Optional[str] = None
        self.code = 0
        self.error: Optional[BaseException] = None

    def request(self, reason: str, code: int = 0, error: Optional[BaseException] = None) -> None:
        """Asks every stage to end. An error outranks a polite reason such as the end of the source."""
        if self.reason is None or (error is not None and self.error is None and self.code == 0):
            self.code, self.error, self.reason = code, error, reason
