"""The tools that Tailorbird is compared with, each brought within a measured latency limit.

Every peer gets a trained teacher and ``latency_of``, the same measurement that the targets use, and
returns the least compressed network of its own making that meets the limit. None of them trains;
the benchmark retrains them all alike. All are deterministic, given the same latencies.

Run ``python bench/peers.py --depth 20 --share 0.6`` to see all of them at work on a small network.

Quirks met, and what is done about them:

- torch-pruning rounds the channels that stay *down* to the multiple, and then skips, without a
  word, each layer that would be left with none: the layers to be cut most stay whole, and a higher
  ratio can give a slower network (at 0.9 a ResNet-20 is not pruned at all). ``_FlooredPruner`` lets
  every layer keep one multiple instead, which makes this baseline stronger.
- torch-pruning's dependency graph breaks on the zero-padded shortcuts, so only the first
  convolution of each block is prunable. FastNAS comes to the same search space by itself.
- modelopt reads ``torchprofile.profile.handlers``, gone since torchprofile 0.1; an empty tuple
  serves, and then BatchNorm counts as FLOPs, which does not matter as latency decides.
- FastNAS re-estimates BatchNorm after each cut only if its queue of 50 batches is full; otherwise
  it merely warns, and its sensitivities are of little worth. The queue is always filled here, and
  shortened to the batches given, since each of hundreds of steps runs all of them.
- Both can only narrow the first convolution of each block, to one multiple at least, so there is a
  latency below which they can't go; then ``InfeasibleError`` says where it lies.
- FastNAS's profile (minutes) is kept in its own checkpoint; later searches reuse it. These are run
  without images, since they need none and would re-estimate BatchNorm at every step.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from tailorbird.errors import InfeasibleError

LatencyOf = Callable[[nn.Module], float]
MULTIPLE = 8
BATCH = 64


@dataclass(frozen=True)
class Peer:
    """A peer's network in eval mode, and how it came about.

    Args:
        name: the tool, or the donor.
        module: the network, not yet retrained.
        latency_ms: as measured; within the limit.
        setting: the tool's own knob: the pruning ratio, or the share of FLOPs; 0 for a donor.
        trials: (setting, latency in ms) of each network measured on the way.
        seconds: what finding it took, measurements included.
    """

    name: str
    module: nn.Module
    latency_ms: float
    setting: float
    trials: tuple[tuple[float, float], ...]
    seconds: float


def best_donor(
    donors: Mapping[str, nn.Module],
    latency_of: LatencyOf,
    limit_ms: float,
    *,
    accuracy_of: Callable[[nn.Module], float],
) -> Peer:
    """The most accurate of the ``donors`` within the limit, as it is.

    Raises:
        InfeasibleError: when every donor is slower than ``limit_ms``.
    """
    began = perf_counter()
    latencies = {name: latency_of(module) for name, module in donors.items()}
    within = [name for name in donors if latencies[name] <= limit_ms]
    if not within:
        raise _too_slow("no donor", limit_ms, min(latencies.values()))
    best = max(within, key=lambda name: accuracy_of(donors[name]))
    trials = tuple((0.0, latency) for latency in latencies.values())
    module = copy.deepcopy(donors[best]).eval()
    return Peer(best, module, latencies[best], 0.0, trials, perf_counter() - began)


def torch_pruning(
    teacher: nn.Module,
    example: Tensor,
    latency_of: LatencyOf,
    limit_ms: float,
    *,
    ignore: Callable[[nn.Module], list[nn.Module]],
    multiple: int = MULTIPLE,
    steps: int = 8,
) -> Peer:
    """torch-pruning: group magnitude, global, channels in multiples of 8, ratio bisected.

    Args:
        teacher: left as it is.
        example: one image (1, C, H, W).
        latency_of: the measurement, in ms.
        limit_ms: the bound.
        ignore: gives the layers of a copy of the teacher that must stay whole.
        multiple: of which the widths that stay are; also the narrowest.
        steps: bisection steps.

    Raises:
        InfeasibleError: when even the strongest pruning is too slow.
    """

    def prune(ratio: float) -> nn.Module:
        return prune_by_magnitude(teacher, example, ratio, ignore=ignore, multiple=multiple)

    return _bisect("torch-pruning", prune, latency_of, limit_ms, low=0.0, high=0.99, steps=steps)


def prune_by_magnitude(
    teacher: nn.Module,
    example: Tensor,
    ratio: float,
    *,
    ignore: Callable[[nn.Module], list[nn.Module]],
    multiple: int = MULTIPLE,
) -> nn.Module:
    """One run of torch-pruning at ``ratio``, the share of prunable channels to remove."""
    import torch_pruning as tp

    class _FlooredPruner(tp.pruner.BasePruner):  # type: ignore[misc]  # the package has no types
        def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
            left = (current_channels - n_pruned) // round_to * round_to
            return max(current_channels - max(left, round_to), 0)

    pruned = copy.deepcopy(teacher).eval()
    pruner = _FlooredPruner(
        pruned,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=ignore(pruned),
        round_to=multiple,
    )
    pruner.step()
    return pruned


def residual_layers(network: nn.Module) -> list[nn.Module]:
    """What torch-pruning has to leave whole in ``CifarResNet``: stem, second convolutions, head."""
    return [
        module
        for name, module in network.named_modules()
        if name in ("conv1", "linear") or name.endswith(".conv2")
    ]


@dataclass
class FastNas:
    """nvidia-modelopt's FastNAS; one profile serves any number of limits.

    Args:
        teacher: left as it is; in its device the search runs.
        images: (n, C, H, W) normalised, on which each cut is scored.
        labels: (n,), or ``None`` to score the agreement with the teacher.
        calibration: training images (n, C, H, W) for BatchNorm, of which the first 512 serve.
        folder: where modelopt keeps its profile; give a temporary one.
    """

    teacher: nn.Module
    images: Tensor
    labels: Tensor | None
    calibration: Tensor
    folder: Path
    evaluations: int = field(default=0, init=False)
    profile_s: float = field(default=0.0, init=False)

    def within(self, latency_of: LatencyOf, limit_ms: float, *, steps: int = 8) -> Peer:
        """The network with the most FLOPs that meets the limit, FLOPs bisected on latency.

        Raises:
            InfeasibleError: when even the smallest network of its space is too slow.
        """
        return _bisect(
            "modelopt FastNAS",
            lambda cut: self.search(1.0 - cut),
            latency_of,
            limit_ms,
            low=0.0,
            high=1.0 - self.least_share(),
            steps=steps,
        )

    def least_share(self) -> float:
        """FLOPs of the smallest network of the space, as a share of the teacher's."""
        from modelopt.torch.nas.utils import inference_flops, sample

        space, flops = self._space(), []
        with _quiet():
            for extreme in (min, max):  # of the widths that each layer may have
                sample(space, extreme)
                flops.append(float(inference_flops(space, self.images[:1])))
        return flops[0] / flops[1] + 1e-6

    def search(self, share: float) -> nn.Module:
        """FastNAS's network with at most ``share`` of the teacher's FLOPs."""
        import modelopt.torch.nas as mtn

        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / "fastnas.pth"
        fresh = not checkpoint.exists()
        began = perf_counter()
        space = self._space()
        settings: dict[str, object] = {
            "score_func": self._score,
            "checkpoint": str(checkpoint),
            "verbose": False,
        }
        if fresh:
            settings |= {
                "data_loader": self._batches(),
                "collect_func": lambda batch: batch,
            }
        with _quiet():
            found, _ = mtn.search(
                space,
                constraints={"flops": f"{100 * share:.6f}%"},
                dummy_input=self.images[:1],
                config=settings,
            )
        if fresh:
            self.profile_s = perf_counter() - began
        return _plain(found, self.teacher)

    def _space(self) -> nn.Module:
        """The teacher's copy, made into modelopt's search space."""
        import modelopt.torch.nas as mtn
        from modelopt.torch.nas import autonas

        autonas.MODELOPT_QUEUE_MAXLEN = len(self._batches())
        rules = {
            "nn.Conv2d": {"*": {"channel_divisor": MULTIPLE}},
            "nn.BatchNorm2d": {"*": {"feature_divisor": MULTIPLE}},
        }
        with _quiet():
            space = mtn.convert(copy.deepcopy(self.teacher).eval(), mode=[("fastnas", rules)])
        assert isinstance(space, nn.Module)
        return space

    def _batches(self) -> list[Tensor]:
        used = self.calibration[: 8 * BATCH]
        return list(used.tensor_split(max(1, len(used) // BATCH)))

    def _answers(self) -> Tensor:
        if self.labels is None:
            with torch.inference_mode():
                self.labels = self.teacher(self.images).argmax(1)
        return self.labels

    def _score(self, network: nn.Module) -> float:
        """Top-1 on the images; ``eval()`` is what makes modelopt re-estimate BatchNorm."""
        self.evaluations += 1
        network.eval()
        answers, right = self._answers(), 0
        with torch.inference_mode():
            for start in range(0, len(self.images), 256):
                logits = network(self.images[start : start + 256])
                right += int((logits.argmax(1) == answers[start : start + 256]).sum())
        return right / len(self.images)


def _plain(found: nn.Module, teacher: nn.Module) -> nn.Module:
    """The layers of ``found`` in a copy of the teacher, rid of modelopt's own attributes."""
    network = copy.deepcopy(teacher).eval()
    for name, module in found.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            network.set_submodule(name, copy.deepcopy(module).eval())
    return network


def _bisect(
    name: str,
    make: Callable[[float], nn.Module],
    latency_of: LatencyOf,
    limit_ms: float,
    *,
    low: float,
    high: float,
    steps: int,
) -> Peer:
    """The smallest cut between ``low`` and ``high`` whose network is within the limit.

    Networks of equal widths are measured once.
    """
    began = perf_counter()
    known: dict[tuple[tuple[int, ...], ...], float] = {}
    trials: list[tuple[float, float]] = []

    def attempt(cut: float) -> tuple[nn.Module, float]:
        network = make(cut)
        widths = tuple(tuple(tensor.shape) for tensor in network.state_dict().values())
        if widths not in known:
            known[widths] = latency_of(network)
        trials.append((cut, known[widths]))
        return network, known[widths]

    best, latency = attempt(high)
    if latency > limit_ms:
        raise _too_slow(name, limit_ms, latency)
    setting = high
    for _ in range(steps):
        middle = (low + high) / 2
        network, measured = attempt(middle)
        if measured <= limit_ms:
            best, latency, setting, high = network, measured, middle, middle
        else:
            low = middle
    return Peer(name, best, latency, setting, tuple(trials), perf_counter() - began)


def _too_slow(what: str, limit_ms: float, lowest: float) -> InfeasibleError:
    return InfeasibleError(
        f"{what}: nothing within {limit_ms:.4g} ms; the lowest reached is {lowest:.4g} ms",
        limits={"latency_ms": limit_ms},
        lowest={"latency_ms": lowest},
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence modelopt's chatter and give it the attribute of torchprofile that it looks for."""
    module = importlib.import_module("torchprofile.profile")
    patched = not hasattr(module, "handlers")
    if patched:
        module.handlers = ()  # type: ignore[attr-defined]  # what modelopt looks for
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        if patched:
            del module.handlers


def _first_convolutions(network: nn.Module) -> list[int]:
    return [
        module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and name.endswith(".conv1")
    ]


def main() -> None:
    """Try every peer at one limit, with few images."""
    from cifar_resnet import trained
    from tailorbird.export.onnx import export_onnx
    from tailorbird.measure.devices.onnxruntime import OnnxRuntime

    parser = argparse.ArgumentParser(description="Try every peer on a small budget.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 44, 56))
    parser.add_argument("--share", type=float, default=0.6, help="of the teacher's latency")
    parser.add_argument("--images", type=int, default=128)
    arguments = parser.parse_args()
    teacher = trained(arguments.depth, arguments.data)
    images, labels = _some_images(arguments.data, 2 * arguments.images)
    device = OnnxRuntime(threads=1, runs=50)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def latency_of(network: nn.Module) -> float:
            path = export_onnx(network, (3, 32, 32), folder / "model.onnx")
            return float(device.measure([path])[0].median_ms)

        def accuracy_of(network: nn.Module) -> float:
            with torch.inference_mode():
                return float((network(images).argmax(1) == labels).float().mean())

        limit = arguments.share * latency_of(teacher)
        print(f"limit {limit:.3f} ms")
        nas = FastNas(
            teacher,
            images[: arguments.images],
            labels[: arguments.images],
            images[arguments.images :],
            folder / "fastnas",
        )
        donors = {f"resnet{depth}": trained(depth, arguments.data) for depth in (20, 32, 44)}
        peers: dict[str, Callable[[], Peer]] = {
            "donor": lambda: best_donor(donors, latency_of, limit, accuracy_of=accuracy_of),
            "pruning": lambda: torch_pruning(
                teacher, images[:1], latency_of, limit, ignore=residual_layers
            ),
            "fastnas": lambda: nas.within(latency_of, limit),
        }
        for key, fit in peers.items():
            try:
                peer = fit()
            except InfeasibleError as error:
                print(f"{key}: {error}")
                continue
            widths = _first_convolutions(peer.module)
            print(
                f"{peer.name}: {peer.latency_ms:.3f} ms, setting {peer.setting:.3f}, "
                f"{len(peer.trials)} trials, {peer.seconds:.1f} s, widths {widths}"
            )
        print(f"FastNAS's profile: {nas.evaluations} evaluations, {nas.profile_s:.1f} s")


def _some_images(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first training images, normalised as the trained networks want them."""
    import numpy as np
    from PIL import Image
    from pyarrow import parquet

    table = parquet.read_table(data / "cifar10" / "train-00000-of-00005.parquet").slice(0, count)
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["img"].to_pylist()]
    )
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    return images, torch.tensor(table["label"].to_pylist())


if __name__ == "__main__":
    main()
