"""How students are exported."""

from __future__ import annotations

from dataclasses import dataclass

from tailorbird.errors import ConfigError, Fault


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the ONNX files of a run look like.

    Args:
        opset: ONNX operator set; the exporter's own choice by default.
        dynamic_batch: let the batch size be chosen at run time, instead of fixing it to 1.

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

    def __post_init__(self) -> None:
        if self.opset is not None and (isinstance(self.opset, bool) or self.opset < 13):
            raise ConfigError([Fault("export.opset", f"expected 13 or more, got {self.opset}")])
