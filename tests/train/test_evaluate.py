import pytest
import torch
from torch import nn

from tailorbird.data.images import Normalisation, TensorSplit
from tailorbird.errors import DataError
from tailorbird.task import Score
from tailorbird.train.evaluate import accuracy, agreement, logits, predictions, score


def make_split(images=23, labelled=True):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (images,), generator=generator) if labelled else None
    return TensorSplit(pixels, labels, Normalisation((0.5,) * 3, (0.25,) * 3))


def make_net():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 5)
    )
    net.train()
    net[1].eval()
    return net


def test_everything_agrees_with_one_whole_forward_pass_and_modes_are_put_back():
    split, net = make_split(), make_net()
    modes = [part.training for part in net.modules()]
    answers = logits(net, split, batch_size=7)
    assert [part.training for part in net.modules()] == modes
    images, labels = next(split.batches(100))
    with torch.no_grad():
        expected = net.eval()(images)
    assert torch.allclose(answers, expected, atol=1e-6)
    right = (expected.argmax(1) == labels).float().mean()
    assert accuracy(net, split, batch_size=7) == pytest.approx(float(right))
    result = score(net, split, batch_size=7)
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(expected, labels)))
    laid_out = score(net, split, batch_size=7, channels_last=True)
    assert laid_out.value == result.value
    assert laid_out.loss == pytest.approx(result.loss)


def test_agreement_needs_no_labels_and_is_one_with_oneself():
    split, net, other = make_split(labelled=False), make_net(), make_net()
    assert agreement(net, net, split) == 1.0
    same = predictions(net, split) == predictions(other, split)
    assert agreement(net, other, split) == pytest.approx(float(same.float().mean()))
    with pytest.raises(DataError, match="use agreement"):
        accuracy(net, split)


def test_a_limit_takes_the_same_images_for_every_network():
    split, net = make_split(), make_net()
    few = predictions(net, split, limit=10, batch_size=4)
    assert len(few) == 10
    assert torch.equal(few, predictions(net, split, limit=10, batch_size=7))
    assert score(net, split, answers=few, limit=10).value == 1.0
    assert len(predictions(net, split, limit=1000)) == len(split)


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="no images"):
        accuracy(make_net(), make_split(images=0))


def test_ties_in_accuracy_go_to_the_lower_loss():
    assert Score(0.5, 1.0).beats(Score(0.5, 2.0))
    assert Score(0.6, 9.0).beats(Score(0.5, 1.0))
    assert not Score(0.5, 1.0).beats(Score(0.5, 1.0))
