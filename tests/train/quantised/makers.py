"""Small networks and their int8 files."""

from __future__ import annotations

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from tailorbird.export.onnx import export_many
from tailorbird.measure.answering import run_onnx

BATCH = 32
"""Images per call of the files made here."""


class Net(nn.Module):
    """BatchNorm behind convolutions, one of them depthwise and one with a bias; a sum; a head.

    The first activation is read by a convolution, through a ReLU, and by the sum as it is.
    """

    def __init__(self, classes=10, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.deep_norm = nn.BatchNorm2d(width)
        self.clip = nn.ReLU6()
        self.wide = nn.Conv2d(width, width, 1)
        self.wide_norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x):
        first = self.relu(self.norm(self.stem(x)))
        inside = self.clip(self.deep_norm(self.deep(first)))
        inside = self.wide_norm(self.wide(inside))
        return self.head(self.drop(self.pool((first + inside).relu()).flatten(1)))


def stretch(net, factor=400.0):
    """One channel between depthwise and pointwise convolution gets larger, and counts as much.

    The network stays the same in float32, where ReLU stands for ReLU6; in int8 one scale for all
    channels leaves little of the others.
    """
    net.clip = nn.ReLU()
    with torch.no_grad():
        net.deep_norm.weight[:2] *= factor
        net.deep_norm.bias[:2] *= factor
        net.wide.weight[:, :2] /= factor
    return net


def rebuilt(student):
    """A copy that can be changed."""
    net = Net()
    net.load_state_dict(student.state_dict())
    return net


def prepared(module, shape, path):
    """The network as a float32 file, BatchNorm folded, as the quantiser takes it."""
    export_many([(module, shape)], path.parent, [path.stem], batch=BATCH)
    quant_pre_process(str(path), str(path))
    return onnx.load(path)


def quantise(module, shape, images, path, **options):
    """An int8 file: weights per channel, ranges of activations by their ends."""
    prepared(module, shape, path)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter([{"image": part.numpy()} for part in images.split(BATCH)])

        def get_next(self):
            return next(self.rest, None)

    quantize_static(
        str(path), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **options
    )
    return path


def differences(file, network, exact, images):
    """Mean difference of the network, and of the one in float32, from the file."""
    theirs = torch.from_numpy(run_onnx(file, images.numpy()))
    with torch.no_grad():
        return [float((one(images) - theirs).abs().mean()) for one in (network, exact)]


def as_written(file, images):
    """What a file says, operator by operator: some of ONNX Runtime's in int8 are approximations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options)
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
