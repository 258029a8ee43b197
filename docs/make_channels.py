"""Write docs/channels.md: which channels of timm's networks can be cut, what layers are followed.

Run from anywhere: ``python docs/make_channels.py`` (about two minutes). Nothing is downloaded: only
the networks' structure counts, not their weights.
"""

from __future__ import annotations

import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tailorbird.graph.channels import Channels, Group, analyse
from tailorbird.graph.rules import covered
from tailorbird.graph.trace import trace

PAGE = Path(__file__).parent / "channels.md"

NETWORKS = {
    "cait_xxs24_224": 32,
    "coatnet_nano_rw_224": 64,
    "convnext_atto": 32,
    "cspresnet50": 32,
    "deit_tiny_distilled_patch16_224": 32,
    "densenet121": 32,
    "dla34": 32,
    "dpn68": 32,
    "edgenext_xx_small": 64,
    "efficientnet_b0": 32,
    "ese_vovnet19b_slim_dw": 32,
    "fastvit_t8": 64,
    "ghostnet_050": 32,
    "hrnet_w18_small": 32,
    "inception_v3": 96,
    "levit_128s": 224,
    "mixer_s32_224": 224,
    "mixnet_s": 32,
    "mobilenetv3_small_050": 32,
    "mobilenetv4_conv_small_035": 32,
    "mobilevit_xxs": 64,
    "nfnet_l0": 32,
    "pit_ti_224": 64,
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "regnety_002": 32,
    "repvgg_a0": 32,
    "res2net50_26w_4s": 32,
    "resnest14d": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "rexnet_100": 32,
    "selecsls42b": 32,
    "skresnet18": 32,
    "swin_tiny_patch4_window7_224": 64,
    "tf_efficientnetv2_b0": 32,
    "tresnet_m": 32,
    "vit_tiny_patch16_224": 32,
    "xception41": 96,
}
"""One network of each family -> pixels that it is traced at."""

SIZED = ("cait", "coatnet", "deit", "levit", "mixer", "pit", "swin", "vit_")
"""Families that are told their image size when they are built."""


def analysed(name: str) -> Channels:
    """The channels of one of timm's networks."""
    import timm

    size = NETWORKS[name]
    options: dict[str, int] = {"img_size": size} if name.startswith(SIZED) else {}
    if name.startswith("swin"):
        options["window_size"] = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own while it imports and builds
        model = timm.create_model(name, num_classes=10, **options)
    return analyse(trace(model, (3, size, size)).module, (3, size, size))


def row(name: str) -> str:
    """A line of the table."""
    channels = analysed(name)
    free, made = channels.share()
    held: Counter[str] = Counter()
    for layer, places in channels.producers:
        for group in (channels.groups[index] for index, _ in places):
            if layer != "input" and not group.at_output and not channels.free(group):
                held[_held_by(group)] += 1
    shares = [(what, round(100 * count / made)) for what, count in held.most_common(2)]
    rest = ", ".join(f"{what} {share}%" for what, share in shares if share)
    return f"| `{name}` | {made:,} | {free:,} | {free / made:.0%} | {rest} |"


def _held_by(group: Group) -> str:
    if group.reason.endswith("another axis"):
        return "other axes of parameters"
    if group.reason:
        return group.reason.partition(" at ")[0].replace("'", "`")
    return "norm over them" if not group.exact else "all are tied"


def page() -> Iterator[str]:
    """The lines of the page."""
    yield from (
        "# Which channels can be cut",
        "",
        "A pruned variant has fewer channels than the block that it comes from. Channels go",
        "together: an addition ties those of its operands, a view into heads those of a head, a",
        "grouped convolution those of a group. A layer that is not known here keeps what it",
        "touches whole, and nothing else.",
        "",
        "*Channels* are those that layers make, without the classes. *Free* are those that can go",
        "so that the rest computes what it would with zeros in their place. Where a norm runs over",
        "the channels, as on the stream of most vision transformers, its statistics would change,",
        "so they stay; the hidden channels of MLPs and whole heads of attention are free there.",
        "",
        "The table is made by `python docs/make_channels.py`.",
        "",
        "| network | channels | free | share | the rest is held by |",
        "|---|---|---|---|---|",
    )
    yield from (row(name) for name in NETWORKS)
    yield from ("", "## What is followed", "")
    for what, names in covered().items():
        yield from textwrap.wrap(f"{what}: {', '.join(f'`{name}`' for name in names)}.", 100)
        yield ""


def main() -> None:
    """Write the page."""
    PAGE.write_text("\n".join(page()).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
