"""Networks as jobs name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailorbird.config.reader import Path_
from tailorbird.config.recipes import recipe
from tailorbird.config.sections import NAMING, Faults, Reader, fields_of, read_fields, short
from tailorbird.factories import is_factory
from tailorbird.models import load_model
from tailorbird.targets import NAME
from tailorbird.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Network:
    """Where a network comes from.

    Args:
        model: ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``.
        arguments: keyword arguments of the constructor or factory.
        checkpoint: weights: safetensors, or a torch file that holds nothing that runs.
        checkpoint_key: where in that file they stand, where it holds several sets, such as
            ``state_dict``; averaged ones are taken by default.
        num_classes: outputs of the head, where the constructor takes that argument.
        train: train it on the images first; keys as in ``retrain``, whose recipe is ``standard``
            here.
    """

    model: str = field(metadata={"hint": "timm:NAME, torchvision:NAME or package.module:factory"})
    arguments: dict[str, object] | None = None
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    num_classes: int | None = None
    train: Recipe | None = None

    def build(self, seed: int, say: Callable[[str], None] | None = None) -> nn.Module:
        """Build it; random weights come from ``seed``, the caller's generator is left be."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load_model(
                self.model,
                arguments=self.arguments,
                checkpoint=self.checkpoint,
                checkpoint_key=self.checkpoint_key,
                num_classes=self.num_classes,
                say=say,
            )


def _training(faults: Faults, path: Path_, raw: object) -> Recipe | None:
    return None if raw is None else recipe(faults, path, raw, default="standard")


_READERS: Mapping[str, Reader] = {"train": _training}


def network(faults: Faults, path: Path_, raw: object, *, base: Path) -> Network | None:
    """Check where a network comes from; a text alone is its ``model``."""
    before = len(faults.found)
    raw = {"model": raw} if isinstance(raw, str) else raw
    values: dict[str, Any] = read_fields(faults, path, raw, fields_of(Network), _READERS)
    model, arguments = values["model"] or "", values["arguments"] or {}
    if model and not is_factory(model.replace("-", "_")):
        faults.add(
            (*path, "model"),
            f"expected timm:NAME, torchvision:NAME or package.module:factory, got {short(model)}",
        )
    if values["checkpoint_key"] is not None and values["checkpoint"] is None:
        faults.add((*path, "checkpoint_key"), "says where in a checkpoint; give that too")
    classes, train = values["num_classes"], values["train"]
    if isinstance(classes, int) and classes < 1:
        faults.add((*path, "num_classes"), f"expected 1 or more, got {classes}")
    if values["checkpoint"] is not None:
        values["checkpoint"] = base / Path(values["checkpoint"]).expanduser()
        if not values["checkpoint"].is_file():
            faults.add((*path, "checkpoint"), f"no file at {values['checkpoint']}")
    trained = isinstance(raw, dict) and raw.get("train") is not None
    if trained and values["checkpoint"] is not None:
        faults.add(path, "has both checkpoint and train; give the one that is meant")
    zoo = model.startswith(("timm:", "torchvision:"))
    loaded = any(arguments.get(key) for key in ("pretrained", "weights"))
    if zoo and not trained and values["checkpoint"] is None and not loaded:
        faults.add(
            path,
            "would have random weights; give a checkpoint, arguments such as "
            + ("{pretrained: true}" if model.startswith("timm:") else "{weights: DEFAULT}")
            + ", or train: {epochs: N}",
        )
    return Network(**{**values, "train": train}) if len(faults.found) == before else None


def donors(faults: Faults, path: Path_, raw: object, *, base: Path) -> dict[str, Network]:
    """Check the donors: name -> where it comes from."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        faults.add(path, f"expected a name and a network each, got {short(raw)}")
        return {}
    read, found = partial(network, base=base), {}
    for name, one in raw.items():
        if not NAME.fullmatch(name):
            faults.add((*path, name), f"the name becomes a file name; use {NAMING}")
        elif name == "teacher":
            faults.add((*path, name), "the name 'teacher' is taken")
        donor = read(faults, (*path, name), one)
        if donor is not None:
            found[name] = donor
    return found
