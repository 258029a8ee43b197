import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tailorbird.train.beside import Step
from tailorbird.train.losses import CrossEntropy, Distillation, Hints
from tailorbird.train.recipe import Recipe
from tailorbird.train.recorded import Streams
from tailorbird.train.retrain import Assignment
from tailorbird.train.students import train

from .tape import Tape
from .test_retrain import HINTS, Net, Poison, Probe, make_data, same, state

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05, precision="float32", clip_norm=0.5)


def together(assignments, streams, recipe=RECIPE):
    """Students trained after a teacher, by what makes their steps."""

    def terms(assignment):
        hints = [Hints(pairs=assignment.hints)] if assignment.hints else []
        return [CrossEntropy(), Distillation(temperature=2.0), *hints]

    teacher = Probe(Net(8, seed=9))
    return train(
        assignments,
        make_data(),
        terms=terms,
        recipe=recipe,
        seed=3,
        teacher=teacher,
        beside=streams,
    )


def equal(first, second):
    return all(same(state(a.module), state(b.module)) for a, b in zip(first, second, strict=True))


def students():
    return [
        Assignment(name="wide", student=Net(8, seed=1), hints=HINTS),
        Assignment(name="plain", student=Net(4, seed=2, dropout=0.0)),
        Assignment(name="inplace", student=Net(6, seed=4, dropout=0.0, inplace=True)),
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_that_are_recorded_train_to_the_same_bits_and_wait_for_nothing(optimizer):
    recipe = replace(RECIPE, optimizer=optimizer, ema=0.9, mixup=0.2)
    tape, said = Tape(), []
    replayed = together(students(), Streams(tape, said.append), recipe)
    # Rates as tensors round otherwise than Python's; those of SGD by nothing.
    alike = None if optimizer == "sgd" else Streams(Tape(room=0), lambda _: None)
    written = together(students(), alike, recipe)
    steps = sum(trained.history[-1].step for trained in written)
    assert said == []
    assert (tape.recorded, tape.replayed) == (3, steps - 2 * 3)
    assert equal(replayed, written)
    assert [a.history[-1].loss for a in replayed] == [b.history[-1].loss for b in written]


def test_an_optimiser_that_counts_in_python_is_not_recorded_and_that_is_said_once():
    tape, said = Tape(), []
    recipe = replace(RECIPE, optimizer="adabelief")
    replayed = together(students(), Streams(tape, said.append), recipe)
    written = together(students(), None, recipe)
    assert tape.recorded == 0
    assert equal(replayed, written)
    [line] = said
    assert "3 of 3 networks (wide, plain, inplace)" in line
    assert "AdaBelief counts its steps in Python" in line


def test_a_network_that_counts_its_passes_is_trained_as_written():
    tape, said = Tape(), []
    broken = Assignment(name="broken", student=Poison(Net(6, seed=2), after=6))
    [done] = together([broken], Streams(tape, said.append))
    assert done.stopped_step == 7
    assert "(broken)" in said[0]
    assert "count or draw in Python" in said[0]


class Branching(nn.Module):
    """Asks the device what to do."""

    def __init__(self):
        super().__init__()
        self.net = Net(6, seed=2)

    def forward(self, x):
        return self.net(x if x.mean() > 0 else -x)


@pytest.mark.parametrize(
    ("blind", "reason"),
    [(False, "wait for the device"), (True, "operation not permitted when stream is capturing")],
)
def test_what_can_not_be_recorded_goes_on_as_written(blind, reason):
    tape, said = Tape(blind=blind), []
    two = [Assignment(name="branching", student=Branching()), students()[1]]
    replayed, written = together(two, Streams(tape, said.append)), together(two, None)
    assert equal(replayed, written)
    assert tape.recorded == 1
    [line] = said
    assert "1 of 2 networks (branching)" in line
    assert reason in line


@pytest.mark.parametrize("room", [0, 2])
def test_what_is_recorded_is_used_only_where_it_agrees_and_there_is_memory(room):
    victim = nn.Linear(3, 2)

    def spoil():
        with torch.no_grad():
            victim.bias.add_(1e-6)

    tape, said = Tape(room, spoil=spoil), []
    streams = Streams(tape, said.append)
    twin = copy.deepcopy(victim)
    step, plain = linear_step("victim", victim, streams), linear_step("twin", twin, streams)
    for number in range(6):
        streams.take({"x": torch.full((4, 3), float(number))})
        streams.make([step])
        plain()
    assert same(state(victim), state(twin))
    assert tape.replayed == (room > 0)
    reason = "recorded, it computes other numbers" if room else "too little memory left"
    assert len(said) == 1
    assert reason in said[0]


def linear_step(name, net, streams, *, alone=False):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def compute():
        net(streams.take(dict(streams._held))["x"]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def nothing():
        """No seed, no rate."""

    return Step(
        name=name,
        network=net,
        prepare=nothing,
        compute=compute,
        conclude=nothing,
        changed=lambda: list(net.parameters()),
        alone=alone,
    )


def test_lanes_are_taken_in_turn_and_those_who_draw_share_the_first():
    tape = Tape(room=3)
    streams = Streams(tape, print)
    steps = [linear_step(f"{n}", nn.Linear(3, 2), streams, alone=n in (1, 3, 4)) for n in range(6)]
    for _ in range(4):
        streams.take({"x": torch.ones(4, 3)})
        streams.make(steps)
    assert tape.used[-6:] == [0, 0, 2, 0, 0, 2]


def test_inputs_stay_in_the_same_tensors_until_their_shapes_change():
    tape = Tape()
    streams, net = Streams(tape, print), nn.Linear(3, 2)
    step, first = linear_step("net", net, streams), torch.ones(4, 3)
    held = streams.take({"x": first})["x"]
    assert held is not first
    assert streams.take({"x": 2 * first})["x"] is held
    assert torch.equal(held, 2 * first)
    for _ in range(4):
        streams.make([step])
    assert (tape.recorded, tape.replayed) == (1, 2)
    assert streams.take({"x": torch.ones(5, 3)})["x"] is not held
    for _ in range(4):
        streams.make([step])
    assert (tape.recorded, tape.replayed) == (2, 4), "the old recording reads the old tensors"
