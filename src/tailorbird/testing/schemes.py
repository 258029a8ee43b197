"""What every training scheme keeps to."""

from __future__ import annotations

import json

import numpy as np

from tailorbird.supernet.architecture import ArchitectureSpace, load_space
from tailorbird.supernet.schemes.scheme import Scheme, Step, listener

_PER_EPOCH, _LOOKED_AT, _ROUNDED = 10, 60, 8


def check_scheme(scheme: Scheme, space: ArchitectureSpace | None = None) -> None:
    """Steps lie in the space, follow from number and generator alone, and have rates and losses.

    Args:
        scheme: the one to be tested.
        space: that it is laid out over; a space of the package where ``None``.

    Raises:
        AssertionError: naming what it does not keep to.
    """
    space = space or load_space("compofa-mbv3-w1.0", resolutions=[128, 160])
    record = scheme.record()
    assert json.loads(json.dumps(record)) == record, "record: expected JSON values"
    assert isinstance(scheme.name, str) and scheme.name, "name: expected text"
    plan, again = scheme.plan(space, _PER_EPOCH), scheme.plan(space, _PER_EPOCH)
    total = scheme.epochs * _PER_EPOCH
    near = abs(plan.total - total) <= _ROUNDED  # each phase is whole steps
    assert near, f"total: expected about {total:g} steps, got {plan.total}"
    listener(plan)  # a plan passes losses on to samplers that learn
    for number in np.unique(np.linspace(0, plan.total - 1, _LOOKED_AT, dtype=int)).tolist():
        step = plan.step(number, np.random.default_rng(number))
        _check_step(step, space, number)
        other = again.step(number, np.random.default_rng(number))
        asked = f"step {number}: expected the same networks and rate from an equal generator"
        assert len(step.networks) == len(other.networks) and step.rate == other.rate, asked
        pairs = zip(step.networks, other.networks, strict=True)
        assert all((a.genome == b.genome).all() for a, b in pairs), asked


def _check_step(step: Step, space: ArchitectureSpace, number: int) -> None:
    assert step.networks, f"step {number}: no network is trained"
    assert np.isfinite(step.rate) and step.rate >= 0, f"step {number}: rate {step.rate}"
    assert isinstance(step.phase, str) and step.phase, f"step {number}: phase: expected text"
    space.space.validate(np.stack([member.genome for member in step.networks]))
    for place, member in enumerate(step.networks):
        assert member.weight > 0, f"step {number}: a network's weight is {member.weight}"
        assert any(term.weight > 0 for term in member.terms), f"step {number}: nothing to learn"
        if member.teacher == "full":
            full = (step.networks[0].genome[1:] == (space.space.sizes - 1)[1:]).all()
            assert place > 0 and full, f"step {number}: the full network has to come first"
