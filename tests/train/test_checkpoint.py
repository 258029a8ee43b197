import pytest
import torch

from tailorbird.errors import StoreError
from tailorbird.train.checkpoint import Checkpoint


def test_the_newest_whole_state_is_loaded(tmp_path):
    store = Checkpoint(tmp_path / "run", {"seed": 0})
    assert store.load() is None
    channels_last = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for epoch in range(4):
        store.save(epoch, {"w": channels_last + epoch}, {"step": epoch})
    assert len(list(store.folder.iterdir())) == 4
    tensors, record = store.load()
    assert record == {"step": 3}
    assert torch.equal(tensors["w"], channels_last + 3)
    (store.folder / "epoch-000003.json").write_text("{")
    assert store.load()[1] == {"step": 2}
    (store.folder / "epoch-000002.safetensors").unlink()
    assert store.load() is None


def test_what_differs_is_said(tmp_path):
    Checkpoint(tmp_path, {"seed": 0, "hints": ["a"], "kind": "x"}).save(0, {}, {})
    with pytest.raises(StoreError) as caught:
        Checkpoint(tmp_path, {"seed": 1, "hints": ["a"], "size": 2}).load()
    assert "kind: 'x' there, None now" in str(caught.value)
    assert "seed: 0 there, 1 now" in str(caught.value)
    assert "size: None there, 2 now" in str(caught.value)
    assert "hints" not in str(caught.value)
