import pytest

from tailorbird.errors import ConfigError
from tailorbird.train.recipe import Recipe


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        Recipe(
            epochs=float("nan"), batch_size=1, optimizer="adam", ema=1.0, minutes=0,
            learning_rate="0.1", warmup=True, validation_limit=0,
        )  # fmt: skip
    text = str(caught.value)
    assert len(caught.value.problems) == 8
    assert "recipe.epochs: expected a number above 0, got nan" in text
    assert "recipe.batch_size: expected a whole number of 2 or more, got 1" in text
    assert "recipe.optimizer: expected one of sgd, adabelief, adamw, got 'adam'" in text
    assert "recipe.learning_rate: expected a number above 0, got '0.1'" in text
    assert "recipe.ema: expected a number of 0 or more and below 1, got 1.0" in text


def test_a_record_makes_the_same_recipe():
    recipe = Recipe(epochs=0.5, ema=0.99)
    assert Recipe(**recipe.as_record()) == recipe


def test_recipes_by_name():
    assert Recipe.named("teaching") == Recipe()
    standard = Recipe.named("standard", epochs=3)
    assert (standard.epochs, standard.cutmix, standard.ce_weight) == (3, 0, 1)
    paper = Recipe.named("bespoke")
    assert (paper.optimizer, paper.learning_rate, paper.epochs) == ("adabelief", 0.02, 30)
    assert (paper.ce_weight, paper.kl_weight, paper.mse_weight) == (0, 0, 1)
    with pytest.raises(ConfigError, match="one of teaching, standard, bespoke, got 'paper'"):
        Recipe.named("paper")
    with pytest.raises(ConfigError, match=r"recipe\.epochs: expected a number above 0, got 0"):
        Recipe.named("bespoke", epochs=0)


def test_a_rate_that_is_left_open_follows_the_length_the_batch_and_what_was_lost():
    recipe = Recipe()
    intact = [recipe.peak(steps, lost=0.0) for steps in (70, 700, 7000, 10**6)]
    assert intact[0] < intact[1] < intact[2] == intact[3]
    assert recipe.peak(70, 0.0) < recipe.peak(70, 0.5) < recipe.peak(70, 1.0) == recipe.peak(7000)
    assert recipe.peak(70, -0.2) == recipe.peak(70, 0.0), "it may be better than the teacher"
    assert Recipe(batch_size=256).peak(70) == 2 * recipe.peak(70)
    assert Recipe(optimizer="adamw").peak(7000) == 1e-3
    assert Recipe(learning_rate=0.3).peak(1, 0.0) == 0.3
