import pytest

from tailorbird.errors import ConfigError
from tailorbird.house.options import HouseOptions


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        HouseOptions(
            teacher_blocks=0,
            pruned=-1,
            designed=-2,
            recall=1.5,
            epochs=0,
            minutes=0,
            precision="f8",
        )
    assert [p.split(":")[0] for p in caught.value.problems] == [
        "house.teacher_blocks",
        "house.pruned",
        "house.designed",
        "house.recall",
        "house.epochs",
        "house.minutes",
        "house.precision",
    ]
    assert "expected more than 0, at most 1, got 1.5" in str(caught.value)


def test_leaves_may_be_written_as_numbers():
    assert HouseOptions(leaves=(2, "layers.3")).leaves == ("2", "layers.3")
