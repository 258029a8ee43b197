"""Marks of tests that need what may be missing."""

from importlib.util import find_spec

import pytest

WITH_OPENVINO = find_spec("openvino") is not None and find_spec("nncf") is not None

needs_openvino = pytest.mark.skipif(
    not WITH_OPENVINO, reason="needs the extra openvino: pip install 'tailorbird[openvino]'"
)
