import onnx
import pytest
from onnx import TensorProto, helper
from torch import nn

from tailorbird.export.onnx import export_many, export_onnx
from tailorbird.measure.batches import batch_of

XML = """<?xml version="1.0"?>
<net name="n" version="11"><layers>
<layer id="0" name="image" type="Parameter"><data shape="{shape}" element_type="f32"/></layer>
<layer id="1" name="y" type="Result"/></layers></net>
"""


def test_images_in_a_call_of_an_onnx_file(tmp_path):
    network, shape = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), (3, 2, 2)
    for batch in (1, 8):
        (path,) = export_many([(network, shape)], tmp_path, [f"b{batch}"], batch=batch)
        assert batch_of(path) == batch
    export_onnx(network, shape, tmp_path / "open.onnx", dynamic_batch=True)
    assert batch_of(tmp_path / "open.onnx") == 1
    (tmp_path / "broken.onnx").write_bytes(b"no file")
    assert batch_of(tmp_path / "broken.onnx") is None
    assert batch_of(tmp_path / "none.onnx") is None
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (4, 2)) for n in "abc"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])], "g", value[:2], value[2:]
    )
    onnx.save(helper.make_model(graph), tmp_path / "two.onnx")
    assert batch_of(tmp_path / "two.onnx") is None


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
