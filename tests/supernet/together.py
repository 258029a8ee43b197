"""What each of several processes runs in `test_together`: started by torchrun, in a folder."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tailorbird.errors import TailorbirdError
from tailorbird.supernet.schemes.bignas import BigNAS
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.train import train_supernet
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.train.world import is_main
from tests.supernet.bandit import Makes
from tests.supernet.tiny import stripes, tiny_supernet

RECIPE = SupernetRecipe(batch_size=12, precision="float32", clip_norm=1.0)
"""Without an average and mixing: timm's import alone takes longer than all the rest."""
SCHEME = DepS(epochs=4, ramp_epochs=1, learning_rate=0.05)
LEARNS = BigNAS(epochs=2, learning_rate=0.05)
SEED = 3


def die(steps):
    """The main process ends without a word in the middle of a run."""
    if steps.step == 4:
        os._exit(7)


class Bright:
    """The training images, one of them too bright for float32 where the second process sees it."""

    def __init__(self, split):
        self.split = split

    def __getattr__(self, name):
        return getattr(self.split, name)

    def __len__(self):
        return len(self.split)

    def batches(self, size, *, share=(0, 1), **options):
        for images, labels in self.split.batches(size, share=share, **options):
            yield (images * float("nan") if share[0] == 1 else images), labels


def main(folder):
    space = folder / f"space-{is_main()}"
    space.mkdir()
    net = tiny_supernet(space, dropout=0.3)
    data = stripes()
    options = {"seed": SEED, "recipe": RECIPE, "device": "cpu"}
    seen = []
    result = train_supernet(
        net,
        data,
        SCHEME,
        folder=folder / "run",
        validate_epochs=2,
        observe=seen.append,
        **options,
    )
    found = {"observed": len(seen), "history": [vars(epoch) for epoch in result.history]}
    found["macs"] = result.macs
    hot = replace(data, train=Bright(data.train))
    try:
        train_supernet(net, hot, BigNAS(epochs=1), **options)
    except TailorbirdError as error:
        found["error"] = str(error)
    other = SCHEME if is_main() else replace(SCHEME, learning_rate=0.01)
    try:
        train_supernet(net, data, other, **options)
    except TailorbirdError as error:
        found["differs"] = str(error)
    makes = Makes()
    train_supernet(net, data, replace(LEARNS, sampler=makes), **options)
    found["learnt"] = makes.made[0].losses.tolist()
    name = "main" if is_main() else "other"
    (folder / f"{name}.json").write_text(json.dumps(found))
    save_file(result.supernet.state_dict(), folder / f"{name}.safetensors")
    train_supernet(net, data, SCHEME, folder=folder / "dies", observe_steps=die, **options)
    (folder / f"{name} lived").touch()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
