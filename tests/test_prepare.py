"""Networks as users hand them over."""

import pytest
import torch
from torch import nn

from tailorbird.errors import ConfigError
from tailorbird.prepare import prepared
from tailorbird.task import Classification

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


def ready(model):
    return prepared(model, (3, 8, 8), name="teacher")


def test_a_plain_network_is_itself():
    net = base()
    assert ready(net) == (net, [])


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        torch.optim.swa_utils.AveragedModel,
        lambda net: nn.DataParallel(torch.compile(net)),
    ],
    ids=["parallel", "compiled", "averaged", "both"],
)
@pytest.mark.filterwarnings("ignore")  # torch's own, about scripts' future
def test_wrappers_are_taken_off(wrap):
    net = base()
    found, notes = ready(wrap(net))
    assert type(found) is nn.Sequential
    assert notes and all("taken out of" in note for note in notes)
    assert torch.equal(found.eval()(IMAGES), net.eval()(IMAGES))


class Parts(nn.Module):
    """Whose body, or a layer of it, is wrapped."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images):
        return self.body(images)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel]
)
@pytest.mark.filterwarnings("ignore")
def test_wrappers_of_parts_are_taken_off_in_a_copy(wrap):
    net = base().eval()
    inner = nn.Sequential(wrap(net[0]), *net[1:])
    given = Parts(nn.DataParallel(wrap(inner))).eval()
    found, [note] = ready(given)
    assert type(found.body) is nn.Sequential and type(found.body[0]) is nn.Conv2d
    assert note.startswith("teacher: parts taken out of ") and "DataParallel" in note
    assert type(given.body) is nn.DataParallel
    assert torch.equal(found(IMAGES), net(IMAGES))


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_other_precisions_become_float32_in_a_copy(kind):
    net = base().to(kind)
    found, [note] = ready(net)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert net[0].weight.dtype == kind
    assert f"{str(kind)[6:]} weights were brought to float32" in note


def test_lazy_layers_are_filled_in_a_copy_the_same_each_time():
    layers = (nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    net = nn.Sequential(*layers)
    state = torch.get_rng_state()
    (first, [note]), (second, _) = ready(net), ready(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(IMAGES), second(IMAGES))
    assert "lazy layers got their weights by one pass" in note
    assert isinstance(net[0], nn.LazyConv2d)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.LazyLinear(2)

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None].expand(-1, 2)


def not_a_number():
    net = base()
    net[3].bias.data[1] = torch.nan
    return net


def dynamically_quantised():
    return torch.ao.quantization.quantize_dynamic(base().eval(), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Unused, "lazy layers that a pass does not reach: unused"),
        (lambda: nn.Sequential(nn.LazyLinear(2), nn.Conv2d(9, 1, 1)), "a pass of images .* failed"),
        (not_a_number, r"weights that are not finite: 3\.bias"),
        (dynamically_quantised, "quantised layers can't be distilled .*: 3"),
        (lambda: torch.jit.script(base()), "give the network that it was made from"),
        (lambda: base().to("meta"), "its weights have no values"),
        (lambda: "timm:resnet18", r"tailorbird\.load_model\('timm:resnet18'\) builds one"),
    ],
    ids=["unreached", "failing", "nan", "quantised", "script", "meta", "text"],
)
@pytest.mark.filterwarnings("ignore")  # torch's own, about quantisation's and scripts' future
def test_what_cannot_be_used_says_the_way_out(model, words):
    with pytest.raises(ConfigError, match=f"^teacher: .*{words}"):
        ready(model())


class Unlabelled:
    name, classes, labelled = "noise", None, False


def test_one_output_without_labels_says_nothing():
    with pytest.raises(ConfigError, match="one output is the largest of one"):
        Classification().check(torch.zeros(2, 1), Unlabelled(), what="teacher")
    Classification().check(torch.zeros(2, 1), what="teacher")
