"""Names of the user's own: looked up, called, and checked against what they are to serve as."""

import pytest

from tailorbird.device import Device
from tailorbird.errors import ConfigError, StoreError
from tailorbird.factories import call_factory, is_factory, of_kind, own
from tailorbird.search.strategy import Strategy

HERE = __name__


class Clock:
    key = "clock"

    def __init__(self, tick=1.0):
        if tick < 0:
            raise StoreError("the clock is broken")
        self.tick = tick

    def measure(self, models):
        return []


class Stopped(Clock):
    measure = None


def leaving():
    raise SystemExit(3)


def test_an_object_of_one_s_own_serves_with_its_arguments():
    assert own(f"{HERE}:Clock", Device, {"tick": 3.0}).tick == 3.0
    assert is_factory(f"{HERE}:Clock") and not is_factory("Clock")


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("Clock", {"tock": 1}, "calling it with {'tock': 1} failed: TypeError"),
        ("Stopped", {}, "expected a device with key, measure, got Stopped without measure"),
        ("leaving", {}, "calling it with no arguments failed: SystemExit: 3"),
        ("HERE", {}, "expected a class or function, got str"),
        ("Clok", {}, "has no 'Clok'; near matches: Clock"),
    ],
)
def test_what_does_not_serve_says_why(name, arguments, says):
    with pytest.raises(ConfigError) as caught:
        own(f"{HERE}:{name}", Device, arguments)
    assert str(caught.value).startswith(f"{HERE}:{name}: ") and says in str(caught.value)


def test_errors_of_tailorbird_s_kind_pass():
    with pytest.raises(StoreError, match="the clock is broken"):
        call_factory(f"{HERE}:Clock", {"tick": -1.0})


def test_a_class_is_no_object_of_its_kind():
    with pytest.raises(ConfigError, match="expected a strategy with name, search, got type with"):
        of_kind(Clock, "here:Clock", Strategy)
