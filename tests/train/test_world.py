"""What one process can say about several; `tests/supernet/test_together.py` starts two."""

import pytest
import torch

from tailorbird.errors import ConfigError
from tailorbird.train import world
from tailorbird.train.world import World, is_main, joined


def launched(monkeypatch, **values):
    known = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**known, **values}.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_joins_nobody(monkeypatch):
    launched(monkeypatch, WORLD_SIZE="1")
    with joined("cpu") as alone:
        assert alone == World(torch.device("cpu"))
    assert is_main()


def test_who_is_main_is_known_before_joining(monkeypatch):
    launched(monkeypatch)
    assert not is_main()
    launched(monkeypatch, RANK="0")
    assert is_main()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"process 2 .* there are 2; start 2 processes"):
        world._own_device(torch.device("cuda"))


def test_sums_travel_in_pieces_of_one_type():
    sizes = [4, 5, 30, 1, 2]
    tensors = [torch.zeros(size) for size in sizes] + [torch.zeros(1, dtype=torch.int64)]
    found = world._buckets(tensors, limit=40)
    assert [one for bucket in found for one in bucket] == tensors
    assert [[len(one) for one in bucket] for bucket in found] == [[4, 5], [30], [1, 2], [1]]
