from itertools import count, repeat

import pytest

from tailorbird.train.clock import Clock, Pause


def ticking(step=1.0):
    return (step * n for n in count()).__next__


def walked(clock):
    """The run's totals after each step, until it is over."""
    totals = []
    while len(totals) < clock.total:
        if len(totals) % clock.per_epoch == 0:
            with clock.validating():
                clock.open()
        clock.count(1, at=len(totals) + 1)
        totals.append(clock.total)
    return totals


def test_without_a_limit_all_steps_are_made():
    clock = Clock(40, 4, now=ticking())
    assert walked(clock) == [40] * 40
    assert clock.left == float("inf")


def test_a_schedule_shrinks_to_what_there_is_time_for_and_stays_there():
    totals = walked(Clock(10_000, 4, limit=500.0, now=ticking()))
    assert totals[:4] == [10_000] * 4
    assert 100 < len(totals) < 250  # two looks at the time for each step, and two for validations
    assert max(totals[10:]) - min(totals[10:]) < 0.3 * len(totals)


def test_a_plan_that_nearly_fits_is_kept():
    assert walked(Clock(40, 4, limit=10_000.0, now=ticking())) == [40] * 40


@pytest.mark.parametrize("spent", [0.0, 45.0])
def test_what_earlier_sittings_spent_is_taken_off(spent):
    clock = Clock(limit=60.0, now=repeat(1000.0).__next__)
    clock.resume(spent)
    assert (clock.seconds, clock.left) == (spent, 60.0 - spent)


def test_time_that_is_spent_ends_the_run_at_the_step_at_hand():
    clock = Clock(1000, 4, limit=0.0, now=ticking())
    assert walked(clock) == [1]


def test_a_pause_is_a_share_of_the_schedule_and_of_the_time():
    clock = Clock(70, 10, pause=Pause(at=3 / 7))
    assert (clock.total, clock.end) == (70, 30)
    assert Clock(1, 10, pause=Pause(at=0.01)).end == 1
    short = Clock(10_000, 4, limit=900.0, pause=Pause(at=0.25, spent=0.5), now=ticking())
    made = 0
    while made < short.end:
        short.open()
        made += 1
        short.count(1, at=made)
    whole = len(walked(Clock(10_000, 4, limit=450.0, now=ticking())))
    assert made == pytest.approx(whole, rel=0.5), "half of the time for a quarter of the steps"
    assert short.total == pytest.approx(4 * made, abs=4)


def test_time_that_is_spent_ends_a_sitting_at_the_step_at_hand():
    clock = Clock(1000, 4, limit=0.0, pause=Pause(at=0.5, spent=0.5), now=ticking())
    clock.count(1, at=7)
    assert (clock.end, clock.total) == (7, 14)
