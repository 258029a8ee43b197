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
