"""What every device keeps to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tailorbird.errors import MeasurementError
from tailorbird.targets import Device
from tailorbird.testing.raising import refused


def check_device(device: Device, models: Sequence[Path]) -> None:
    """Latencies come in the order of the files, grow with the work, and a bad file is an error.

    Args:
        device: the one to be tested.
        models: two or more exported files of clearly rising work, such as 1, 2 and 8 convolutions:
            the next takes longer than the one before on any day.

    Raises:
        AssertionError: naming what it does not keep to.
    """
    assert len(models) > 1, "give two or more files"
    assert isinstance(device.key, str) and device.key, "key: expected text that names the device"
    assert device.measure([]) == [], "nothing to measure: expected an empty list"
    for files in (list(models), list(reversed(models))):
        found = device.measure(files)
        assert len(found) == len(files), f"expected {len(files)} latencies, got {len(found)}"
        for latency in found:
            assert latency.median_ms > 0, latency
            assert latency.spread_ms >= 0, latency
            assert latency.runs >= 1, latency
            assert latency.warmup >= 0, latency
        rising = found if files == list(models) else found[::-1]
        medians = [latency.median_ms for latency in rising]
        assert medians == sorted(set(medians)), f"expected rising latencies, got {medians}"
    missing = models[0].with_name("there-is-no-such-file.onnx")
    refused(MeasurementError, lambda: device.measure([missing]), missing.name)
