import pytest
import torch
from torch import nn

from tailorbird.errors import ConfigError
from tailorbird.train.precision import autocast, compute_device, reproducible, reseed, resolve


def cpu_with(monkeypatch, **units):
    """A processor with AVX512 and the units named."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)


def test_auto_on_a_cpu_asks_hardware_and_network(monkeypatch):
    cpu = torch.device("cpu")
    dense = nn.Sequential(nn.Conv2d(16, 16, 3))
    depthwise = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=16))
    cpu_with(monkeypatch, avx512_bf16=True)
    assert resolve("auto", cpu, dense) == "bfloat16"
    assert resolve("auto", cpu, depthwise) == "float32"
    assert resolve("bfloat16", cpu, depthwise) == "bfloat16"
    cpu_with(monkeypatch, avx512_bf16=False)
    assert resolve("auto", cpu, dense) == "float32"
    with pytest.raises(ConfigError, match="one of auto, float32, bfloat16, got 'half'"):
        resolve("half", cpu)


def test_float32_is_untouched_by_the_context():
    with autocast(torch.device("cpu"), "float32"):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_random_state_is_left_alone_and_repeats_inside():
    cpu = torch.device("cpu")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with reproducible(cpu):
            reseed(cpu, 5)
            draws.append(torch.rand(4))
    assert torch.equal(*draws)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_an_error():
    assert compute_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device is usable"):
        compute_device("cuda")
