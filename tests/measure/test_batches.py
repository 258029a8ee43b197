import onnx
import pytest
from onnx import TensorProto, helper
from torch import nn

from tailorbird.export.onnx import export_many
from tailorbird.measure.batches import batch_of

XML = """<?xml version="1.0"?>
<net name="n" version="11"><layers>
<layer id="0" name="image" type="Parameter"><data shape="{shape}" element_type="f32"/></layer>
<layer id="1" name="y" type="Result"/></layers></net>
"""


def onnx_file(path, *shapes):
    """An ONNX file with an input of each shape."""
    values = [
        helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, shape)
        for number, shape in enumerate([*shapes, shapes[0]])
    ]
    nodes = [helper.make_node("Relu", ["x0"], [values[-1].name])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:-1], values[-1:])), path)
    return path


def test_images_in_a_call_of_an_onnx_file(tmp_path):
    path = tmp_path / "m.onnx"
    assert batch_of(onnx_file(path, (8, 3, 2, 2))) == 8
    assert batch_of(onnx_file(path, ("batch", 3, 2, 2))) == 1
    assert batch_of(onnx_file(path, (1, 3), (1, 3))) is None
    network, shape = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), (3, 2, 2)
    (exported,) = export_many([(network, shape)], tmp_path, ["b4"], batch=4)
    assert batch_of(exported) == 4
    path.write_bytes(b"no file")
    assert batch_of(path) is None
    assert batch_of(tmp_path / "none.onnx") is None


@pytest.mark.parametrize(
    ("text", "batch"),
    [
        (XML.format(shape="8,3,32,32"), 8),
        (XML.format(shape="?,3,32,32"), 1),
        (XML.format(shape="1..8,3,32,32"), 1),
        (XML.replace("Parameter", "Const"), None),
        ("<net>", None),
    ],
)
def test_images_in_a_call_of_a_file_of_openvino(tmp_path, text, batch):
    (tmp_path / "m.xml").write_text(text)
    assert batch_of(tmp_path / "m.xml") == batch
    assert batch_of(tmp_path / "none.xml") is None
