"""Tasks: what outputs mean is asked of one object, the user's own as well."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from tailorbird.demo import DigitsNet
from tailorbird.errors import ConfigError, DataError, GraphError
from tailorbird.task import CLASSIFICATION, Score, Task
from tests.house.makers import images, seeded
from tests.pipeline.makers import job, run_job


class Errors:
    """Adds up absolute errors; the score is what is left of 10."""

    def __init__(self):
        self.error, self.count = 0.0, 0

    def add(self, outputs, targets):
        self.error += float((outputs[:, 0] - targets.float()).abs().sum())
        self.count += len(outputs)

    def result(self):
        if not self.count:
            raise DataError("nothing was added")
        mean = self.error / self.count
        return Score(1 - mean / 10, mean)


@dataclass(frozen=True)
class Counting:
    """One number per image, such as how many of something it shows."""

    name: str = "counting"
    measure: str = "1 - error / 10"

    def check(self, outputs, data=None, *, what):
        if not isinstance(outputs, torch.Tensor) or outputs.shape[1:] != (1,):
            raise ConfigError(f"{what}: expected one number per image, got {tuple(outputs.shape)}")

    def answers(self, outputs):
        return outputs[:, 0]

    def loss(self, outputs, targets, *, smoothing=0.0):
        return F.mse_loss(outputs[:, 0], targets.float())

    def distil(self, outputs, teacher, *, temperature=1.0, reduction="mean"):
        return F.mse_loss(outputs, teacher, reduction=reduction)

    def scorer(self, device):
        return Errors()


def counter(seed=0):
    return seeded(DigitsNet, seed, width=8, depth=1, classes=1).eval()


@pytest.mark.parametrize("labelled", [True, False])
def test_a_task_of_one_s_own_goes_all_the_way(tmp_path, labelled):
    typed: Task = Counting()
    asked = job(
        tmp_path / "run",
        teacher=counter(),
        donors={"other": counter(1)},
        data=images(labelled=labelled),
        task=typed,
        limits={"edge": {"latency": "0.8x"}},
    )
    asked = replace(asked, options=replace(asked.options, epochs=0.5))
    asked = replace(asked, recipe=replace(asked.recipe, keep="last"))
    (target,) = run_job(asked).targets
    assert target.met
    assert target.accuracy is not None
    assert target.accuracy != target.accuracy_before or not labelled
    assert target.teacher_accuracy == pytest.approx(1.0) or labelled
    report = run_job(asked)
    assert report.accuracy_kind == ("1 - error / 10" if labelled else "agreement with the teacher")


def test_a_network_of_another_task_is_refused_with_what_was_expected(tmp_path):

    with pytest.raises(
        GraphError, match=r"DigitsNet: expected one number per image, got \(2, 10\)"
    ):
        run_job(job(tmp_path / "run", task=Counting()))


def test_classification_is_what_it_was():
    generator = torch.Generator().manual_seed(0)
    outputs, teacher = torch.randn(2, 7, 5, generator=generator)
    labels = torch.randint(5, (7,), generator=generator)
    assert (CLASSIFICATION.answers(outputs) == outputs.argmax(1)).all()
    assert CLASSIFICATION.loss(outputs, labels) == F.cross_entropy(outputs, labels)
    kl = F.kl_div(
        outputs.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
    )
    assert CLASSIFICATION.distil(outputs, teacher) == kl
    scorer = CLASSIFICATION.scorer(torch.device("cpu"))
    with pytest.raises(DataError, match="no images"):
        scorer.result()
    scorer.add(outputs[:3], labels[:3])
    scorer.add(outputs[3:], labels[3:])
    score = scorer.result()
    assert score.value == int((outputs.argmax(1) == labels).sum()) / 7
    assert score.loss == pytest.approx(float(F.cross_entropy(outputs, labels)))
    assert score.beats(Score(score.value, score.loss + 1)) and not score.beats(score)


@pytest.mark.parametrize("outputs", [torch.zeros(2, 3, 4, 4), [torch.zeros(2, 3)], torch.zeros(2)])
def test_classification_wants_logits(outputs):
    with pytest.raises(ConfigError, match=r"net: expected logits of shape \(n, classes\), got"):
        CLASSIFICATION.check(outputs, what="net")
