"""The line in front of a device: one request at a time, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from condistill.errors import CondistillError
from condistill.studio.engine import Cancelled, Watch
from condistill.utils.text import first_line

LONGEST = 200
"""Requests that may wait; more are refused with a message."""


@dataclass(eq=False)
class Ticket:
    """A request in the line. Its fields are only replaced, never changed, so that any thread can read them."""

    work: Callable[[Ticket], None] = field(repr=False)
    watch: Watch = field(default_factory=Watch)
    results: tuple[Any, ...] = ()
    """What is finished."""
    step: tuple[str, int, int] = ("", 0, 0)
    """The model at work, its finished steps and their number."""
    is_running: bool = False
    is_done: bool = False
    error: str = ""
    """Why it ended before it was finished."""

    def __post_init__(self) -> None:
        self.watch.on_step = lambda *step: setattr(self, "step", step)

    @property
    def is_cancelled(self) -> bool:
        """Whether its user stopped it."""
        return self.watch.cancelled.is_set()

    def cancel(self) -> None:
        """Stop it before its next denoising step; one that waits is not begun."""
        self.watch.cancelled.set()

    def add(self, result: object) -> None:
        """Add a result, on the thread that works."""
        self.results = (*self.results, result)


class Line:
    """Requests that wait for one device, and the thread that serves them."""

    def __init__(self, longest: int = LONGEST) -> None:
        self._longest = longest
        self._waiting: deque[Ticket] = deque()
        self._now: Ticket | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="studio", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of requests that run or wait."""
        with self._changed:
            return self._count()

    def submit(self, work: Callable[[Ticket], None]) -> Ticket:
        """Add a request to the end of the line.

        Raises:
            CondistillError: too many wait, or the studio ends.
        """
        ticket = Ticket(work)
        with self._changed:
            if self._is_closed:
                raise CondistillError("the studio is closing; start it again")
            self._forget_cancelled()
            if len(self._waiting) >= self._longest:
                raise CondistillError(f"{len(self._waiting)} requests wait already; try again in a while")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def ahead(self, ticket: Ticket) -> int:
        """Return the number of requests before one that waits; 0 once it runs."""
        with self._changed:
            self._forget_cancelled()
            if ticket not in self._waiting:
                return 0
            return self._waiting.index(ticket) + (self._now is not None)

    def close(self, timeout_sec: float = 5.0) -> None:
        """Stop every request, and wait until the one that runs has ended."""
        with self._changed:
            self._is_closed = True
            for ticket in (*self._waiting, *([self._now] if self._now else [])):
                ticket.cancel()
            self._changed.notify()
        self._thread.join(timeout_sec)

    def _count(self) -> int:
        return sum(not ticket.is_cancelled for ticket in self._waiting) + (self._now is not None)

    def _forget_cancelled(self) -> None:
        for ticket in [each for each in self._waiting if each.is_cancelled]:
            self._waiting.remove(ticket)
            ticket.is_done = True

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._now = None
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                self._forget_cancelled()
                if not self._waiting:
                    if self._is_closed:
                        return
                    continue
                ticket = self._now = self._waiting.popleft()
            ticket.is_running = True
            try:
                ticket.work(ticket)
            except Cancelled:
                pass
            except CondistillError as error:
                ticket.error = str(error)
            except Exception as error:  # the thread must serve the others
                ticket.error = f"unexpected {type(error).__name__}: {first_line(error)}"
            ticket.is_done = True
            del ticket
