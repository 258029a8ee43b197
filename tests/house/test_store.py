import pytest

from tailorbird.errors import StoreError
from tailorbird.house.store import HouseStore

from .makers import same, small_sample


def test_sample_comes_back_whole(tmp_path):
    store, sample = HouseStore(tmp_path), small_sample()
    assert store.load_sample() is None
    store.save_sample(sample)
    again = store.load_sample()
    assert again is not None
    assert again.record() == sample.record()
    assert list(again.blocks) == list(sample.blocks)
    assert all(again.blocks[k] == block for k, block in sample.blocks.items())
    assert all(same(again.modules[n], m) for n, m in sample.modules.items())


def test_a_sample_killed_before_its_record_is_absent(tmp_path):
    store = HouseStore(tmp_path)
    store.save_sample(small_sample())
    (tmp_path / "sample.json").unlink()
    assert store.load_sample() is None


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"a": 3}', ""])
def test_damaged_figures_are_measured_anew(tmp_path, content):
    store = HouseStore(tmp_path)
    (tmp_path / "scores.json").write_text(content)
    assert store.load_scores() == {}


def test_damaged_sample_says_what_to_do(tmp_path):
    (tmp_path / "sample.json").write_text("{")
    with pytest.raises(StoreError, match=r"can't read .*sample\.json.*; remove it"):
        HouseStore(tmp_path).load_sample()
    (tmp_path / "sample.json").write_text("[]")
    with pytest.raises(StoreError, match=r"is damaged: the file: .*remove it"):
        HouseStore(tmp_path).load_sample()
