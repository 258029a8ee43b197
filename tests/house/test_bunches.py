import torch
from torch import fx, nn

from tailorbird.house.bunches import step_bytes
from tailorbird.house.layout import lay_out

CPU = torch.device("cpu")


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
    lay_out(flat, (4, 8, 8), CPU)
    assert flat.conv.weight.is_contiguous()
    flat(torch.zeros(2, 4, 8, 8))
    plain = nn.Conv2d(4, 4, 3)
    lay_out(plain, (4, 8, 8), CPU)
    assert plain.weight.is_contiguous(memory_format=torch.channels_last)
