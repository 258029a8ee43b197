"""Recipes as jobs name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from tailorbird.config.reader import Path_
from tailorbird.config.sections import Faults, Field, fields_of, near, short
from tailorbird.errors import ConfigError
from tailorbird.train.recipe import NAMED, Name, Recipe


def recipe_fields(name: Name) -> Mapping[str, Field]:
    """The keys of a section that is a recipe, with the defaults of the one of that name."""
    base = Recipe.named(name)
    own = {key: replace(one, default=getattr(base, key)) for key, one in fields_of(Recipe).items()}
    return {"recipe": Field(Name, name), **own}


def recipe(faults: Faults, path: Path_, raw: object, *, default: Name) -> Recipe | None:
    """Check a recipe: what is left out is as in the one that ``recipe`` names.

    Args:
        default: the name where none is given; a text alone is the name.
    """
    raw = {"recipe": raw} if isinstance(raw, str) else raw
    name = raw.get("recipe", default) if isinstance(raw, dict) else default
    if not isinstance(name, str) or name not in NAMED:
        hint = near(str(name), NAMED)
        faults.add((*path, "recipe"), f"expected a recipe's name, got {short(name)}{hint}")
        return None
    before = len(faults.found)
    values: dict[str, Any] = faults.values(path, raw, recipe_fields(cast(Name, name)))
    del values["recipe"]
    try:
        made = Recipe(**values)
    except ConfigError as error:
        faults.adopt(path, error)
        return None
    return made if len(faults.found) == before else None
