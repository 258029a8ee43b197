import copy

import pytest
import torch
from scipy.stats import spearmanr
from torch import fx, nn

from tailorbird.errors import GraphError
from tailorbird.graph.channels import analyse
from tailorbird.graph.importance import magnitude_scores, ranked
from tailorbird.graph.sensitivity import (
    MEASURED,
    MEASURED_IMAGES,
    Sensitivity,
    discrepancy_scores,
    first_order_scores,
)

from .channel_zoo import (
    SHAPE,
    ZOO,
    BiasedHeads,
    Grouped,
    Residual,
    SqueezeExcite,
    body,
    images,
    zeroed,
)


@pytest.mark.parametrize("samples", [1, 7, 1000])
@pytest.mark.parametrize("kind", ZOO)
def test_discrepancy_equals_masking_one_channel_at_a_time(kind, samples):
    module, batches = body(kind), [images(3), images(2) + 1]
    channels = analyse(module, SHAPE)
    scores = discrepancy_scores(module, SHAPE, batches, samples=samples)
    assert sorted(scores) == [g.index for g in channels.groups if g.prunable and g.exact]
    x = torch.cat(batches)
    with torch.no_grad():
        reference = module(x.clone())
        for index, found in scores.items():
            for position in (0, len(found) - 1):
                masked = zeroed(module, channels, {(index, position)})(x.clone())
                for j, place in enumerate(channels.output):
                    if place == (index, position):
                        masked[:, j] = 0
                expected = (masked - reference).square().mean()
                assert float(found[position]) == pytest.approx(float(expected), rel=1e-3, abs=1e-9)


def test_scores_leave_the_body_alone():
    module = body(ZOO[1]).train()
    state = copy.deepcopy(module.state_dict())
    discrepancy_scores(module, SHAPE, [images()])
    first_order_scores(module, SHAPE, [images()])
    magnitude_scores(module, SHAPE)
    assert module.training and module.act.inplace
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())


def test_only_what_is_asked_for_is_measured():
    module = body(SqueezeExcite)
    every = discrepancy_scores(module, SHAPE, [images()])
    some = discrepancy_scores(module, SHAPE, [images()], only={1: [3, 20]})
    torch.testing.assert_close(some[1][[3, 20]], every[1][[3, 20]])
    assert sum(int(s.count_nonzero()) for s in some.values()) == 2


def test_estimate_is_unbiased_where_the_output_is_linear_in_the_gates():
    torch.manual_seed(0)
    module = fx.symbolic_trace(
        nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 6, 1), nn.Conv2d(6, 4, 3))
    ).eval()
    x = images(400)
    exact = discrepancy_scores(module, SHAPE, [x])
    estimate = first_order_scores(module, SHAPE, x.split(50))
    assert estimate.keys() == exact.keys()
    for index in (1, 2):
        torch.testing.assert_close(estimate[index], exact[index], rtol=0.35, atol=0)
        assert float(estimate[index].sum()) == pytest.approx(float(exact[index].sum()), rel=0.1)


@pytest.mark.parametrize("kind", [Residual, SqueezeExcite, Grouped, BiasedHeads])
def test_estimate_ranks_as_the_measured_scores_do(kind):
    module, x = body(kind), images(64)
    exact = discrepancy_scores(module, SHAPE, [x])
    estimate = first_order_scores(module, SHAPE, [x])
    found = [torch.cat([scores[index] for index in sorted(exact)]) for scores in (exact, estimate)]
    assert spearmanr(*found).statistic > 0.85


def test_layers_that_no_image_reaches_count_too():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.end = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
            self.a, self.b = nn.Linear(2, 10), nn.Linear(10, 6)
            self.register_buffer("places", torch.rand(5, 2))

        def forward(self, x):
            scale = self.b(torch.relu(self.a(self.places))).mean(0)
            return self.end(self.stem(x) * scale.view(1, 6, 1, 1))

    module = fx.symbolic_trace(Constant()).eval()
    channels = analyse(module, SHAPE)
    hidden = next(g for g in channels.groups if "a" in g.layers)
    dead = module.get_submodule("a").bias.argmin()
    module.get_submodule("b").weight.data[:, dead] = 0
    scores = first_order_scores(module, SHAPE, [images(16)])[hidden.index]
    assert scores[dead] == 0 and scores.count_nonzero() > 2


def test_names_and_what_leads_nowhere_do_not_matter():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.output = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1)
            self.side, self.end = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 4, 1)

        def forward(self, x):
            y = self.output(torch.relu(self.output(self.stem(x))))
            return self.end(y + self.side(y).detach())

    module, x = fx.symbolic_trace(Odd()).eval(), images(64)
    inner = next(g for g in analyse(module, SHAPE).groups if "stem" in g.layers)
    exact = discrepancy_scores(module, SHAPE, [x])[inner.index]
    estimate = first_order_scores(module, SHAPE, [x])[inner.index]
    assert spearmanr(exact, estimate).statistic > 0.6


def test_a_cut_measures_a_bounded_number_once():
    torch.manual_seed(0)
    module = fx.symbolic_trace(
        nn.Sequential(nn.Conv2d(8, 200, 1), nn.ReLU(), nn.Conv2d(200, 4, 1))
    ).eval()
    channels = analyse(module, SHAPE)
    inner, x = [g for g in channels.groups if g.interior], images(40)
    estimate = first_order_scores(module, SHAPE, torch.split(x, 16))[1]
    exact = discrepancy_scores(module, SHAPE, [x[:MEASURED_IMAGES]])[1]
    found = Sensitivity(module, SHAPE, x)
    scores = found.at(0.25, inner, multiple=8)[1]
    near = {p for _, p in ranked(channels, inner, {1: estimate}, multiple=8)[34:66]}
    assert {p for _, p in found.measured} == near and len(near) == MEASURED
    rest = sorted(set(range(200)) - near)
    torch.testing.assert_close(scores[sorted(near)], exact[sorted(near)])
    assert torch.equal(scores[rest], estimate[rest])
    found.at(0.3, inner, multiple=8)
    assert len(found.measured) == MEASURED + 10  # the next cut's window is 10 ranks further
    for one in (found, Sensitivity(module, SHAPE, x)):  # whatever was measured before
        assert torch.equal(one.at(0.25, inner, multiple=8)[1], scores)


def test_errors():
    module = body(Residual)
    with pytest.raises(
        GraphError, match=r"expected batches of shape \(n, 8, 6, 6\), got \(3, 5, 6, 6\)"
    ):
        discrepancy_scores(module, SHAPE, [images(shape=(5, 6, 6))])
    with pytest.raises(GraphError, match="got none"):
        discrepancy_scores(module, SHAPE, [])


class _NoSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        raise RuntimeError("no backward here")


class _Stuck(nn.Module):
    def forward(self, x):
        return _NoSlope.apply(x)


def test_a_network_without_gradients_is_refused_with_the_reason():
    class Leafy(fx.Tracer):
        def is_leaf_module(self, m, name):
            return isinstance(m, _Stuck) or super().is_leaf_module(m, name)

    net = nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1), _Stuck())
    module = fx.GraphModule(net, Leafy().trace(net)).eval()
    with pytest.raises(GraphError, match="no gradient to rank channels by: no backward here"):
        first_order_scores(module, SHAPE, [images()])
