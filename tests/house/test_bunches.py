from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from tailorbird.house.bunches import in_halves, plan_bunches, step_bytes
from tailorbird.train.precision import lay_out

from .makers import OPTIONS, small_sample, teacher


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.dense = nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.dense(x.view(x.size(0), -1))


def test_step_bytes_bound_what_autograd_keeps():
    tensor = 4 * 4 * 8 * 8
    one = fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)))
    assert step_bytes(one, (4, 8, 8)) == 6 * tensor  # keeps its input only, which is the teacher's
    layers = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid()) for _ in range(5)]
    assert step_bytes(fx.symbolic_trace(nn.Sequential(*layers)), (4, 8, 8)) == (5 + 6) * tensor


def test_step_bytes_leave_module_and_random_state_alone():
    module = fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5))).eval()
    before, state = module.get_buffer("0.running_var").clone(), torch.get_rng_state()
    step_bytes(module, (4, 8, 8))
    assert torch.equal(module.get_buffer("0.running_var"), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not module.training


def test_networks_that_view_images_flat_stay_contiguous():
    flat = Flat().eval()
    lay_out(flat, torch.zeros(2, 4, 8, 8))
    assert flat.conv.weight.is_contiguous()
    flat(torch.zeros(2, 4, 8, 8))
    plain = nn.Conv2d(4, 4, 3)
    lay_out(plain, torch.zeros(2, 4, 8, 8))
    assert plain.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_out_of_memory_is_halved_until_it_fits_or_given_up():
    sizes, lost = [], []

    def train(bunch):
        sizes.append(len(bunch))
        if len(bunch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if bunch == "c":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return {bunch: 1}

    assert in_halves("abcde", train, lost.append) == {"a": 1, "b": 1, "d": 1, "e": 1}
    assert sizes == [5, 2, 1, 1, 3, 1, 2, 1, 1]
    assert lost == ["c"]


def test_other_errors_are_not_taken_for_memory():
    def broken(bunch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        in_halves("abc", broken, print)


def test_bunches_leave_room_for_all_that_run_at_a_time():
    sample = small_sample()
    trainable = [a for a in sample.alternatives if a.trainable]
    sizes = {a.name: 10_000_000 for a in trainable}  # beside which the rest is little

    def bunches(device, abreast, memory_mb):
        options = replace(OPTIONS, memory_mb=memory_mb)
        where = torch.device(device)
        return plan_bunches(
            teacher(), sample, trainable, options, device=where, abreast=abreast, sizes=sizes
        )

    assert len(bunches("cpu", 1, 60)) == 1
    assert max(map(len, bunches("cpu", 4, 60))) == 2
    assert max(map(len, bunches("cpu", 4, 120))) == len(trainable)
    assert max(map(len, bunches("cuda", 4, 30))) == 2
