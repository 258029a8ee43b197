"""Marks of tests that need what may be missing."""

from importlib.util import find_spec

import pytest

needs_openvino = pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")),
    reason="needs the extra openvino: pip install 'tailorbird[openvino]'",
)
