import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from tailorbird.train.beside import Crew, Step
from tailorbird.train.draws import draws, python_numbers


@pytest.fixture(autouse=True)
def three_threads():
    """Torch's threads, so that one that is changed shows."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def step(work, *, alone=False):
    def nothing():
        """Neither before nor after."""

    return Step(
        name="net",
        network=nn.Identity(),
        prepare=nothing,
        compute=work,
        conclude=nothing,
        changed=list,
        alone=alone,
    )


def test_workers_run_at_the_same_time_with_threads_of_their_own_and_the_count_is_put_back():
    met, counts = threading.Barrier(2), []

    def meet():
        met.wait(timeout=60)
        counts.append(torch.get_num_threads())

    Crew(workers=2, threads=2).make([step(meet) for _ in range(4)])
    assert counts == [2] * 4
    assert torch.get_num_threads() == 3


def test_steps_that_draw_run_alone_after_the_others_in_order_with_as_many_threads():
    running, made = threading.Lock(), []

    def draw(number):
        def work():
            assert running.acquire(blocking=False), "another one is at work"
            made.append((number, torch.get_num_threads(), threading.current_thread()))
            running.release()

        return step(work, alone=True)

    others = [step(lambda: made.append("other")) for _ in range(3)]
    Crew(workers=2, threads=1).make([draw(0), *others, draw(1)])
    here = threading.current_thread()
    assert made == ["other"] * 3 + [(0, 1, here), (1, 1, here)]


def test_a_crew_of_one_is_the_caller_with_threads_as_found():
    made = []
    crew = Crew(workers=1, threads=1)
    crew.make([step(lambda: made.append((torch.get_num_threads(), threading.current_thread())))])
    assert made == [(3, threading.current_thread())]


def test_one_that_is_left_over_has_the_threads_of_one_among_many():
    counts = []
    Crew(workers=3, threads=1).call([lambda: counts.append(torch.get_num_threads())])
    assert counts == [1]


def test_an_error_ends_the_crew_after_what_was_begun_and_is_that_of_the_first():
    ended, begun = [], threading.Event()

    def fail():
        begun.wait(timeout=60)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def slow():
        begun.set()
        ended.append("slow")

    works = [fail, slow, *[lambda: ended.append("late")] * 200]
    with pytest.raises(torch.OutOfMemoryError):
        Crew(workers=2).call(works)
    assert ended[0] == "slow"
    assert torch.get_num_threads() == 3
    assert not [t for t in threading.enumerate() if t.name.startswith("step")]


class Drawing(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + self.draw() * self.training


def refuse():
    raise RuntimeError("not with such images")


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.BatchNorm1d(3), False),
        (nn.Dropout(0.0), False),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)), True),
        (Drawing(random.random), True),
        (Drawing(lambda: np.random.random(1)[0]), True),  # the global one, not a copy
        (Drawing(lambda: torch.rand(())), True),
        (Drawing(refuse), True),
    ],
)
def test_what_draws_is_found_and_every_generator_left_as_it_was(net, expected):
    net.eval()
    generators = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    assert draws(net, torch.ones(2, 3)) == expected
    assert random.getstate() == generators[0]
    assert np.random.get_state()[1].tobytes() == generators[1]
    assert torch.equal(torch.get_rng_state(), generators[2])
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert not net.training


def test_what_a_pass_changes_in_python_is_seen():
    net = nn.Sequential(nn.Linear(3, 3))
    before = python_numbers(net)
    assert python_numbers(net) == before
    net[0].calls = 1
    assert python_numbers(net) != before
