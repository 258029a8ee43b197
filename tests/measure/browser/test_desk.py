import secrets

import numpy as np
import pytest

from tailorbird.errors import MeasurementError
from tailorbird.measure.devices.browser.desk import MOST_LOST, Desk, Hello, Work
from tests.measure.browser.pages import asked

WORK = Work(title="measure of 1 files", task={"kind": "measure"}, files=(), inputs=(np.zeros(3),))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def hello(**facts):
    given = {"agent": "b", "machine": "m", "cores": 2, "isolated": True, **facts}
    return Hello(page=secrets.token_hex(16), **given)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def desk(clock):
    """One that answers a page without work at once."""
    found = Desk(poll_s=0, silent_s=10, clock=clock)
    yield found
    found.close()


def handed(desk, page):
    """The turn in which a page gets work that another thread is asking for."""
    for _ in range(10_000):
        said = desk.next(page)
        if said["state"] == "work":
            return said["turn"]
    raise AssertionError("no work came")


def test_work_is_done_by_the_page_that_asks(desk):
    page = hello()
    with asked(lambda: desk.ask(WORK, wait_s=30, limit_s=1000, way_out="open it")) as answer:
        turn = handed(desk, page)
        assert desk.work(turn) is WORK
        assert desk.alive(turn)
        assert desk.output(turn, 0, np.ones(2))
        assert not desk.output(turn, 1, np.ones(2))
        assert desk.done(turn, {"rounds_ms": []})
        words, arrays = answer()
    assert words == {"rounds_ms": []}
    assert list(arrays) == [0]
    assert (desk.work(turn), desk.alive(turn), desk.done(turn, {})) == (None, False, False)
    assert desk.next(page) == {"state": "idle"}


def test_a_second_page_waits_until_the_first_is_closed(desk):
    first, second = hello(), hello()
    assert desk.next(first) == {"state": "idle"}
    assert desk.next(second) == {"state": "elsewhere"}
    desk.bye(second.page)
    assert desk.next(first) == {"state": "idle"}
    desk.bye(first.page)
    assert desk.next(second) == {"state": "idle"}
    assert desk.next(first) == {"state": "elsewhere"}


def test_a_second_page_takes_over_when_the_first_is_silent(desk, clock):
    first, second = hello(), hello()
    with asked(lambda: desk.ask(WORK, wait_s=30, limit_s=1000, way_out="open it")) as answer:
        turn = handed(desk, first)
        desk.output(turn, 0, np.ones(1))
        clock.now += 9
        assert desk.alive(turn)
        clock.now += 9
        assert desk.next(second) == {"state": "elsewhere"}
        clock.now += 2
        again = handed(desk, second)
        assert again != turn
        assert not desk.done(turn, {"of": "first"})
        assert desk.next(first) == {"state": "elsewhere"}
        assert desk.done(again, {"of": "second"})
        words, arrays = answer()
    assert (words, dict(arrays)) == ({"of": "second"}, {})


def test_a_page_that_is_closed_and_opened_again_does_the_work_from_its_beginning(desk):
    with asked(lambda: desk.ask(WORK, wait_s=30, limit_s=1000, way_out="open it")) as answer:
        for _ in range(MOST_LOST + 2):  # however often
            page = hello()
            turn = handed(desk, page)
            desk.bye(page.page)
            assert not desk.alive(turn)
        desk.done(handed(desk, hello()), {"done": True})
        assert answer()[0] == {"done": True}


def test_work_that_pages_are_lost_over_is_given_up(desk, clock):
    with asked(lambda: desk.ask(WORK, wait_s=300, limit_s=1000, way_out="open it")) as answer:
        for _ in range(MOST_LOST):
            handed(desk, hello())
            clock.now += 11
        with pytest.raises(
            MeasurementError, match=r"measure of 1 files: .*3 times.*too little mem"
        ):
            answer()


@pytest.mark.parametrize("gone", [False, True])
def test_nobody_comes(desk, clock, gone):
    with asked(lambda: desk.ask(WORK, wait_s=30, limit_s=1000, way_out="open URL")) as answer:
        if gone:
            page = hello()
            handed(desk, page)
            desk.bye(page.page)
        clock.now += 31
        words = "the page went away in the middle" if gone else "no page is open for it"
        with pytest.raises(MeasurementError, match=rf"{words}; open URL \(waited 30 s\)"):
            answer()
    with asked(lambda: desk.page(wait_s=30, way_out="open URL")) as answer:
        clock.now += 31
        with pytest.raises(MeasurementError, match=r"no browser has opened the page; open URL"):
            answer()


def test_work_that_takes_too_long_is_given_up_though_the_page_is_there(desk, clock):
    with asked(lambda: desk.ask(WORK, wait_s=30, limit_s=50, way_out="open it")) as answer:
        turn = handed(desk, hello())
        for _ in range(6):
            clock.now += 9
            desk.alive(turn)
        with pytest.raises(MeasurementError, match="did not end within 50 s"):
            answer()
    assert not desk.alive(turn)


def test_a_page_that_leaves_while_it_waits_gets_no_work(clock):
    desk, page = Desk(poll_s=60, clock=clock), hello(shown="idle")
    with asked(lambda: desk.next(page)) as said:
        desk.page(wait_s=10, way_out="")
        desk.bye(page.page)
        assert said() == {"state": "idle"}
    other = hello()
    assert desk.next(other) == {"state": "idle"}
    desk.close()


def test_a_page_is_told_at_once_of_another_state(clock):
    desk = Desk(poll_s=60, clock=clock)
    assert desk.next(hello(shown="")) == {"state": "idle"}
    assert desk.next(hello(shown="idle")) == {"state": "elsewhere"}
    desk.close()


def test_nobody_waits_at_a_closed_desk(clock):
    desk = Desk(clock=clock)
    desk.close()
    with pytest.raises(MeasurementError, match=r"no browser has opened .*\(it is served no more\)"):
        desk.page(wait_s=10, way_out="open it")
    with pytest.raises(MeasurementError, match="measure of 1 files: its page is served no more"):
        desk.ask(WORK, wait_s=10, limit_s=10, way_out="open it")
