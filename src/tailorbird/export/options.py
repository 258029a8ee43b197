"""How students are exported."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tailorbird.errors import ConfigError, Fault


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
