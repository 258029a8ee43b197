import math

import pytest
import torch
import torch.nn.functional as F

from tailorbird.train.losses import CrossEntropy, Distillation, Hints, Seen, relative_error, total


def seen(labels=None, teacher=None, student=None):
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.0, 3.0]], requires_grad=True)
    return Seen(logits, labels, teacher or {}, student or {})


def test_cross_entropy_with_smoothing_against_its_definition():
    batch = seen(labels=torch.tensor([0, 2]))
    log = batch.logits.log_softmax(1)
    smooth = torch.full((2, 3), 0.1 / 3)
    smooth[0, 0] += 0.9
    smooth[1, 2] += 0.9
    expected = -(smooth * log).sum(1).mean()
    assert torch.isclose(CrossEntropy(smoothing=0.1)(batch), expected)
    hard = F.one_hot(torch.tensor([0, 2]), 3).float()
    soft_labels = CrossEntropy(smoothing=0.1)(seen(labels=hard))
    assert torch.isclose(soft_labels, expected)
    assert CrossEntropy()(seen()) is None


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_against_its_definition(temperature):
    answer = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    batch = seen(teacher={"output": answer.bfloat16()})
    p = (answer / temperature).softmax(1)
    q = (batch.logits / temperature).softmax(1)
    expected = (p * (p / q).log()).sum(1).mean() * temperature**2
    assert torch.isclose(Distillation(temperature=temperature)(batch), expected)
    same = seen(teacher={"output": batch.logits.detach()})
    assert Distillation(temperature=temperature)(same).abs().item() < 1e-6
    assert Distillation()(seen()) is None


def test_relative_error_does_not_depend_on_the_scale_of_a_layer():
    student, teacher = torch.randn(4, 8), torch.randn(4, 8)
    error = relative_error(student, teacher)
    assert torch.isclose(relative_error(1e4 * student, 1e4 * teacher), error)
    dead = relative_error(student, torch.zeros(4, 8))
    assert math.isfinite(dead)


def test_hints_add_up_and_the_total_weighs_what_applies():
    teacher = {"a": torch.ones(2, 4), "b": 2 * torch.ones(2, 4)}
    student = {"x": torch.zeros(2, 4), "y": torch.ones(2, 4)}
    batch = seen(labels=None, teacher=teacher, student=student)
    hints = Hints(pairs=(("x", "a"), ("y", "b")), weight=2.0)
    assert float(hints(batch)) == pytest.approx(1.0 + 0.25)
    assert float(total([CrossEntropy(), Distillation(), hints], batch)) == pytest.approx(2.5)
    assert total([CrossEntropy(weight=0.0)], seen(labels=torch.tensor([0, 1]))) is None
