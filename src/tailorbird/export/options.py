"""How students are exported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite

from tailorbird.errors import ConfigError, Fault

LEAST_CALIBRATION = 16
"""Images that ranges of activations are found on at least."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the ONNX files of a run look like.

    Args:
        opset: ONNX operator set; the exporter's own choice by default.
        dynamic_batch: let the batch size be chosen at run time, instead of fixing it to 1.
        normalise: students' files take images in [0, 1], float32, and normalise them themselves;
            else images have to be normalised before.
        softmax: students' files answer with probabilities instead of logits.

    Raises:
        ConfigError: for an opset that this version can't verify.

    Example:
        >>> ExportOptions(opset=3)
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: export.opset: expected 13 or more, got 3
    """

    opset: int | None = None
    dynamic_batch: bool = False
    normalise: bool = False
    softmax: bool = False

    def __post_init__(self) -> None:
        if self.opset is not None and (isinstance(self.opset, bool) or self.opset < 13):
            raise ConfigError([Fault("export.opset", f"expected 13 or more, got {self.opset}")])

    @property
    def adds(self) -> bool:
        """Whether delivered files hold more than the network itself."""
        return self.normalise or self.softmax

    def asked(self) -> dict[str, object]:
        """The options as a request counts them: those that came later only where they are set.

        Example:
            >>> ExportOptions(softmax=True).asked()
            {'opset': None, 'dynamic_batch': False, 'softmax': True}
        """
        later = ("normalise", "softmax")
        return {key: value for key, value in asdict(self).items() if value or key not in later}


@dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """How files in int8 are made, where a device runs them.

    Args:
        calibration_images: training images that the ranges of activations are found on.
        max_loss: points of accuracy, on validation images, that int8 may cost a network.
        train_epochs: of quantisation-aware training, where it costs more; 0 for none.

    Raises:
        ConfigError: listing every value out of range.

    Example:
        >>> QuantiseOptions(calibration_images=4)
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: quantise.calibration_images: expected 16 or more, got 4: \
fewer say nothing of the ranges of activations
    """

    calibration_images: int = 256
    max_loss: float = 1.0
    train_epochs: float = 1.0

    def __post_init__(self) -> None:
        faults = []
        if self.calibration_images < LEAST_CALIBRATION:
            faults.append(
                Fault(
                    "quantise.calibration_images",
                    f"expected {LEAST_CALIBRATION} or more, got {self.calibration_images}: fewer "
                    "say nothing of the ranges of activations",
                )
            )
        for name, least in (("max_loss", 0.0), ("train_epochs", 0.0)):
            value = getattr(self, name)
            if not (isfinite(value) and value >= least):
                faults.append(Fault(f"quantise.{name}", f"expected {least:g} or more, got {value}"))
        if faults:
            raise ConfigError(faults)
