"""Networks whose code asks more of its tensors than a recorder usually answers."""

import warnings

import torch
from torch import Tensor, nn

from tests.graph.zoo import Head, conv


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.5 * x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    scripted = torch.jit.script(_swish)


def halves(windows: Tensor, count: int) -> Tensor:
    batch = int(windows.shape[0] / count)
    return windows.view(batch, count, -1).mean(1)


class Asks(nn.Module):
    """One convolution, something done to its channels, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.part, self.head = conv(3, 4), nn.Conv2d(2, 2, 1), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.conv(x)))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Types(Asks):
    def middle(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not torch.is_tensor(x) or type(x) is not Tensor:
            raise TypeError(f"expected a tensor, got {type(x)}")
        assert isinstance(x.shape[0], int) and isinstance(type(x), type) and not isinstance(x, int)
        assert x.dim() == 4 and f"{x.shape[1]:d} {x.dtype}" == "4 torch.float32"
        return torch.cat(list([x] if torch.is_tensor(x) else x), 1)


class Sizes(Asks):
    def middle(self, x: Tensor) -> Tensor:
        if x.shape[2] > 10:
            return x
        windows = x.reshape(len(x) * 4, -1)
        y = halves(windows, 4).view(*x.shape[:1], 1, x.shape[2], -1)
        return x + y.sum(-1, keepdim=True) + x.new_zeros(x.shape) + torch.ones(x.shape[0], 1, 1, 1)


class Unbound(Asks):
    def middle(self, x: Tensor) -> Tensor:
        return scripted(Tensor.relu(x)) + Tensor.add(x, 1)


class Slices(Asks):
    def middle(self, x: Tensor) -> Tensor:
        y, x = x, x.clone()
        x[:, :2] = self.part(y[:, :2])
        x[:, -1] = 0.5
        x[..., 0, 1:] += 1
        x[:, 1:3].mul_(2)
        return x


class Zeros(Asks):
    """Channels moved into a fresh tensor, as shift networks do."""

    def middle(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, :2, :, 1:] = x[:, :2, :, :-1]
        out[:, 2:] = x[:, 2:]
        return out


class Masks(Asks):
    def middle(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[x > 0.5] = 0.0
        y[:, [0, 2]] = x[:, [2, 0]]
        return y


class Nested(Asks):
    """A view of a view is written to."""

    def middle(self, x: Tensor) -> Tensor:
        x = x.clone()
        half = x[:, :2]
        half[:, 0] = 1.0
        half.add_(1)
        return x + half.sum(1, keepdim=True)


NETS = {kind.__name__: kind for kind in (Types, Sizes, Unbound, Slices, Zeros, Masks, Nested)}
