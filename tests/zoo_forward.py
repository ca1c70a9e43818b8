"""The larger networks once more, from their papers' tables: plain NumPy in float64, on the names of a state dict.

Nothing here is dlgpu's. Channels, groups and the depths of ResNets are those of the weights; strides, poolings, the
order of branches and what is added to what are said again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Array = np.ndarray


def windows(x: Array, size: int, stride: int, padding: int, fill: float) -> Array:
    """(N, C, H, W) -> (N, C, P, Q, size, size)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]


def max_pool(x: Array, size: int, stride: int, padding: int = 0, ceil: bool = False) -> Array:
    if ceil:  # a last window that hangs over the edge
        over = [-(extent - size) % stride for extent in x.shape[2:]]
        x = np.pad(x, ((0, 0), (0, 0), (0, over[0]), (0, over[1])), constant_values=-np.inf)
    return windows(x, size, stride, padding, -np.inf).max((4, 5))


def relu(x: Array, limit: float = np.inf) -> Array:
    return np.clip(x, 0, limit)


def response_norm(x: Array, alpha: float, beta: float, k: float) -> Array:
    """Over 5 neighbouring channels; `alpha` multiplies the sum of their squares."""
    squares = np.pad(x**2, ((0, 0), (2, 2), (0, 0), (0, 0)))
    return x / (k + alpha * sum(squares[:, i : i + x.shape[1]] for i in range(5))) ** beta


class Net:
    """Weights by name. `small`: the image has fewer than 96 pixels, and the first layer does not halve it."""

    def __init__(self, state: Mapping[str, Array], small: bool) -> None:
        self.w = {name: array.astype(np.float64) for name, array in state.items()}
        self.small = small

    def conv(self, x: Array, name: str, stride: int = 1, padding: int | None = None) -> Array:
        weight = self.w[f"{name}.weight"]
        size = weight.shape[2]
        seen = windows(x, size, stride, size // 2 if padding is None else padding, 0)
        groups = x.shape[1] // weight.shape[1]
        parts = zip(np.split(seen, groups, 1), np.split(weight, groups), strict=True)
        y = np.concatenate([np.tensordot(a, b, ((1, 4, 5), (1, 2, 3))) for a, b in parts], axis=3).transpose(0, 3, 1, 2)
        return y + self.w[f"{name}.bias"][:, None, None] if f"{name}.bias" in self.w else y

    def norm(self, x: Array, name: str, eps: float = 1e-5) -> Array:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (self.w[f"{name}.{part}"][:, None, None] for part in parts)
        return (x - mean) / np.sqrt(var + eps) * scale + shift

    def unit(self, x: Array, name: str, stride: int = 1) -> Array:
        """GoogLeNet's: convolution, batch norm where the file has it, ReLU."""
        y = self.conv(x, f"{name}.conv", stride)
        return relu(self.norm(y, f"{name}.bn", 1e-3) if f"{name}.bn.weight" in self.w else y)

    def dense(self, x: Array, name: str) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]


def alexnet(n: Net, x: Array) -> Array:
    """With the paper's LRN."""
    x = relu(n.conv(x, "features.0", 1 if n.small else 4, padding=2))
    x = max_pool(response_norm(x, 1e-4, 0.75, 2), 3, 2)
    x = max_pool(response_norm(relu(n.conv(x, "features.4")), 1e-4, 0.75, 2), 3, 2)
    for index in (8, 10, 12):
        x = relu(n.conv(x, f"features.{index}"))
    x = max_pool(x, 3, 2).reshape(len(x), -1)
    if n.small:
        return n.dense(x, "classifier.1")
    return n.dense(relu(n.dense(relu(n.dense(x, "classifier.1")), "classifier.4")), "classifier.6")


def googlenet(n: Net, x: Array) -> Array:
    """The paper's variant."""
    x = n.unit(x, "conv1") if n.small else max_pool(n.unit(x, "conv1", 2), 3, 2, ceil=True)
    x = n.unit(n.unit(response_norm(x, 1e-4 / 5, 0.75, 1), "conv2"), "conv3")
    x = max_pool(response_norm(x, 1e-4 / 5, 0.75, 1), 3, 2, ceil=True)
    for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if module in ("4a", "5a"):
            x = max_pool(x, 3, 2, ceil=True)
        at = f"inception{module}.branch"
        three = n.unit(n.unit(x, f"{at}2.0"), f"{at}2.1")
        five = n.unit(n.unit(x, f"{at}3.0"), f"{at}3.1")
        x = np.concatenate([n.unit(x, f"{at}1"), three, five, n.unit(max_pool(x, 3, 1, 1), f"{at}4.1")], axis=1)
    return n.dense(x.mean((2, 3)), "fc")


def inception_v2(n: Net, x: Array) -> Array:
    x = n.unit(x, "conv1") if n.small else max_pool(n.unit(x, "conv1", 2), 3, 2, 1)
    x = max_pool(n.unit(n.unit(x, "conv2"), "conv3"), 3, 2, 1)
    for module in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        at, stride = f"inception{module}.branch", 2 if module in ("3c", "4e") else 1
        branches = [] if stride == 2 else [n.unit(x, f"{at}1")]
        branches.append(n.unit(n.unit(x, f"{at}2.0"), f"{at}2.1", stride))
        branches.append(n.unit(n.unit(n.unit(x, f"{at}3.0"), f"{at}3.1"), f"{at}3.2", stride))
        if stride == 2:
            branches.append(max_pool(x, 3, 2, 1))
        else:
            pooled = max_pool(x, 3, 1, 1) if module == "5b" else windows(x, 3, 1, 1, 0).mean((4, 5))
            branches.append(n.unit(pooled, f"{at}4.1"))
        x = np.concatenate(branches, axis=1)
    return n.dense(x.mean((2, 3)), "fc")


def mobilenet_v1(n: Net, x: Array) -> Array:
    """The paper's table 1, row by row; its last depthwise layer has stride 1."""
    strides = [1 if n.small else 2, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1, *10 * [1], 2, 1, 1, 1]
    for index, stride in enumerate(strides):
        x = relu(n.norm(n.conv(x, f"features.{index}.0", stride), f"features.{index}.1"))
    return n.dense(x.mean((2, 3)), "classifier.0")


def mobilenet_v2(n: Net, x: Array) -> Array:
    """Sandler et al. 2018, table 2: (blocks, stride of the first), whose outputs are added to where sizes agree."""
    x = relu(n.norm(n.conv(x, "features.0.0", 1 if n.small else 2), "features.0.1"), 6)
    rows = [(1, 1), (2, 1 if n.small else 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]
    strides = [first if block == 0 else 1 for blocks, first in rows for block in range(blocks)]
    for index, stride in enumerate(strides, 1):
        at, y = f"features.{index}.conv", x
        filtered = 0 if index == 1 else 1  # the first block does not expand
        for layer in range(filtered + 1):
            y = n.conv(y, f"{at}.{layer}.0", stride if layer == filtered else 1)
            y = relu(n.norm(y, f"{at}.{layer}.1"), 6)
        y = n.norm(n.conv(y, f"{at}.{filtered + 1}"), f"{at}.{filtered + 2}")
        x = x + y if x.shape == y.shape else y
    x = relu(n.norm(n.conv(x, "features.18.0"), "features.18.1"), 6)
    return n.dense(x.mean((2, 3)), "classifier.1")


def resnet(n: Net, x: Array) -> Array:
    x = relu(n.norm(n.conv(x, "conv1", 1 if n.small else 2), "bn1"))
    if not n.small:
        x = max_pool(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        block = 0
        while f"{(at := f'layer{stage}.{block}')}.conv1.weight" in n.w:
            stride = 2 if stage > 1 and block == 0 else 1
            last = 3 if f"{at}.conv3.weight" in n.w else 2
            halves = 2 if last == 3 else 1  # the 3x3 of a bottleneck, the first 3x3 of the others
            y = x
            for layer in range(1, last + 1):
                y = n.norm(n.conv(y, f"{at}.conv{layer}", stride if layer == halves else 1), f"{at}.bn{layer}")
                y = relu(y) if layer < last else y
            if f"{at}.downsample.0.weight" in n.w:
                x = n.norm(n.conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x, block = relu(x + y), block + 1
    return n.dense(x.mean((2, 3)), "fc")


def squeezenet(n: Net, x: Array, added: tuple[int, ...] = ()) -> Array:
    """Version 1.0. `added`: the fire modules whose output the input itself is added to."""
    x = relu(n.conv(x, "features.0", padding=1) if n.small else n.conv(x, "features.0", 2, padding=0))
    index = 1
    for fire in range(2, 10):
        if fire in (2, 5, 9):
            x, index = max_pool(x, 3, 2, ceil=True), index + 1
        index += 1
        at = f"features.{index}"
        squeezed = relu(n.conv(x, f"{at}.squeeze"))
        y = relu(np.concatenate([n.conv(squeezed, f"{at}.expand1x1"), n.conv(squeezed, f"{at}.expand3x3")], axis=1))
        if fire in added:
            y = y + x
        elif f"{at}.bypass.weight" in n.w:
            y = y + n.conv(x, f"{at}.bypass")
        x = y
    return relu(n.conv(x, "classifier.1")).mean((2, 3))
