"""Tracing, cutting and stitching networks of many timm families."""

import copy
import importlib.util
import re
import warnings
from pathlib import Path

import pytest
import timm
import torch

from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.surgery import extract, induce, split
from tailorbird.graph.trace import trace

DOCS = Path(__file__).parents[2] / "docs"
FAMILIES = {
    "efficientnet_b0": 32,
    "tf_efficientnetv2_b0": 32,
    "mobilenetv1_100": 32,
    "mobilenetv2_035": 32,
    "mobilenetv3_small_050": 32,
    "mobilenetv4_conv_small_035": 32,
    "resnet18": 32,
    "resnetv2_50": 32,
    "resnetrs50": 32,
    "inception_resnet_v2": 96,
    "densenet121": 32,
    "regnetx_002": 32,
    "regnety_002": 32,
    "repvgg_a0": 32,
    "convnext_atto": 32,
    "fastvit_t8": 64,
    "levit_128s": 224,
    "ghostnet_050": 32,
    "mobilevit_xxs": 64,
    "edgenext_xx_small": 64,
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "nfnet_l0": 32,
    "res2net50_26w_4s": 32,
    "repghostnet_050": 32,
    "dla34": 32,
}
TRANSFORMERS = {
    "vit_tiny_patch16_224": 32,
    "deit_tiny_distilled_patch16_224": 32,
    "swin_tiny_patch4_window7_224": 64,
    "swinv2_tiny_window8_256": 64,
    "coatnet_nano_rw_224": 64,
    "cait_xxs24_224": 32,
    "pit_ti_224": 64,
}
WINDOWS = {"swin_tiny_patch4_window7_224": 4, "swinv2_tiny_window8_256": 4}


def build(name: str) -> tuple[torch.nn.Module, int]:
    if name in FAMILIES:
        return timm.create_model(name, num_classes=7), FAMILIES[name]
    size = TRANSFORMERS[name]
    extra = {"window_size": WINDOWS[name]} if name in WINDOWS else {}
    return timm.create_model(name, num_classes=7, img_size=size, **extra), size


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *TRANSFORMERS])
def test_family(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own while it imports and builds
        model, size = build(name)
    graph = trace(model.eval(), (3, size, size))
    images = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(graph.module(images), expected)
        assert graph.params == sum(parameter.numel() for parameter in model.parameters())
        blocks = [b for b in enumerate_blocks(graph, max_share=0.3) if len(b.nodes) > 2]
        block = blocks[len(blocks) // 2]
        body = extract(graph, block)
        assert torch.equal(induce(graph, {block: body})(images), expected)
        parts = split(graph, block)
        first, *others = parts.prefix(images)
        assert torch.equal(parts.suffix(body(first), *others), expected)


def test_drop_path_and_dropout_follow_the_mode() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=2,
        num_classes=4,
        drop_rate=0.2,
        attn_drop_rate=0.1,
        drop_path_rate=0.3,
    )
    graph = trace(model, (3, 32, 32))
    module = copy.deepcopy(graph.module)
    images = torch.randn(4, 3, 32, 32)
    outputs = []
    for network in (model, module):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            outputs.append(network.train()(images))
    assert torch.equal(*outputs)
    assert not torch.equal(model.eval()(images), outputs[0])
    assert {"attention", "dropout"} <= {layer.kind for layer in graph.layers}


def test_the_page_of_channels_is_what_its_script_makes() -> None:
    """All but the rows, which take minutes; of those, one."""
    spec = importlib.util.spec_from_file_location("make_channels", DOCS / "make_channels.py")
    assert spec is not None and spec.loader is not None
    channels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(channels)
    text = (DOCS / "channels.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| (\d+)% \|", text, re.MULTILINE)
    assert [name for name, *_ in rows] == list(channels.NETWORKS) and len(rows) >= 30
    for _, made, free, share in rows:
        exact = 100 * int(free.replace(",", "")) / int(made.replace(",", ""))
        assert exact <= 100 and abs(int(share) - exact) <= 0.5
    hint = "run: python docs/make_channels.py"
    assert channels.row("mobilenetv3_small_050") in text, hint
    channels.row = lambda name: next(line for line in text.splitlines() if f"| `{name}` |" in line)
    assert "\n".join(channels.page()).rstrip() == text.rstrip(), hint
