from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from condistill.errors import CondistillError
from condistill.studio.line import Line, Ticket


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(longest=3)
    yield line
    line.close()


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """Work that ends when it is opened, or when its user stops it."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def work(self, ticket: Ticket) -> None:
        while not self.opened.wait(0.001):
            ticket.watch.check()
        ticket.add("finished")


def test_one_request_runs_at_a_time_in_the_order_in_which_they_came(line: Line) -> None:
    gate, order, at_once = Gate(), [], []

    def work(number: int) -> Callable[[Ticket], None]:
        def run(ticket: Ticket) -> None:
            at_once.append(sum(each.is_running and not each.is_done for each in tickets))
            order.append(number)

        return run

    tickets = [line.submit(gate.work)]
    wait_for(lambda: tickets[0].is_running)
    tickets += [line.submit(work(number)) for number in range(3)]
    assert [line.ahead(ticket) for ticket in tickets] == [0, 1, 2, 3]
    assert len(line) == 4
    gate.opened.set()
    wait_for(lambda: all(ticket.is_done for ticket in tickets))
    assert (order, at_once) == ([0, 1, 2], [1, 1, 1])
    assert tickets[0].results == ("finished",)
    wait_for(lambda: len(line) == 0)


def test_a_request_that_waits_can_be_stopped_and_the_others_move_up(line: Line) -> None:
    gate = Gate()
    running = line.submit(gate.work)
    wait_for(lambda: running.is_running)
    stopped, last = line.submit(gate.work), line.submit(gate.work)
    stopped.cancel()
    assert line.ahead(last) == 1
    assert stopped.is_done
    assert not stopped.is_running


def test_a_request_that_runs_can_be_stopped(line: Line) -> None:
    ticket = line.submit(Gate().work)
    wait_for(lambda: ticket.is_running)
    ticket.cancel()
    wait_for(lambda: ticket.is_done)
    assert (ticket.is_cancelled, ticket.error, ticket.results) == (True, "", ())


def test_a_line_that_is_too_long_refuses_with_a_message(line: Line) -> None:
    gate = Gate()
    running = line.submit(gate.work)
    wait_for(lambda: running.is_running)
    for _ in range(3):
        line.submit(gate.work)
    with pytest.raises(CondistillError, match="3 requests wait already; try again in a while"):
        line.submit(gate.work)


def test_an_error_ends_only_its_own_request(line: Line) -> None:
    def fail(ticket: Ticket) -> None:
        raise CondistillError("bad")

    def break_down(ticket: Ticket) -> None:
        raise KeyError("inner")

    tickets = [line.submit(fail), line.submit(break_down), line.submit(lambda ticket: ticket.add(1))]
    wait_for(lambda: all(ticket.is_done for ticket in tickets))
    assert [ticket.error for ticket in tickets] == ["bad", "unexpected KeyError: 'inner'", ""]
    assert tickets[2].results == (1,)


def test_closing_stops_every_request_and_refuses_new_ones() -> None:
    line = Line()
    gate = Gate()
    tickets = [line.submit(gate.work) for _ in range(3)]
    line.close()
    assert all(ticket.is_cancelled and ticket.is_done for ticket in tickets)
    with pytest.raises(CondistillError, match="closing"):
        line.submit(gate.work)
