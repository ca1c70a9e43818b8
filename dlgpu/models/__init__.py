"""The networks, by name. Each module holds one family, with its source and its layer table in the docstring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlgpu.errors import ShapeError, UnknownName
from dlgpu.models.dcgan import dcgan_discriminator, dcgan_generator
from dlgpu.models.deep_convnet import deep_convnet
from dlgpu.models.fcn import fcn8s, fcn16s, fcn32s
from dlgpu.models.lenet import lenet5, lenet5_1998
from dlgpu.models.mlp import mlp
from dlgpu.models.simple_convnet import simple_convnet
from dlgpu.models.vgg import vgg11, vgg13, vgg16, vgg19
from dlgpu.models.vgg_small import vgg_small
from dlgpu.nn import Module

__all__ = [
    "MODELS",
    "ModelInfo",
    "build",
    "dcgan_discriminator",
    "dcgan_generator",
    "deep_convnet",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "lenet5",
    "lenet5_1998",
    "mlp",
    "simple_convnet",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg_small",
]


@dataclass(frozen=True)
class ModelInfo:
    """A registered network: how to build it, what it eats, and defaults that train it well."""

    make: Callable[..., Module]
    about: str
    image_size: int
    in_channels: int = 1
    dataset: str = "mnist"
    epochs: int = 5
    batch_size: int = 100
    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0


MODELS: dict[str, ModelInfo] = {
    "mlp": ModelInfo(mlp, "multilayer perceptron, 784-100-10", 28),
    "simple_convnet": ModelInfo(simple_convnet, "conv 30@5x5, pool, affine 100, affine 10", 28, epochs=20),
    "lenet5": ModelInfo(lenet5, "LeNet-5 as used today: ReLU, max-pooling", 28, schedule="cosine", lr=2e-3),
    "lenet5_1998": ModelInfo(lenet5_1998, "LeNet-5 of 1998: tanh, trainable subsampling, 32x32 input", 32, epochs=10),
    "deep_convnet": ModelInfo(
        deep_convnet, "six 3x3 convolutions, He init, dropout; above 99 % on MNIST", 28, epochs=12, schedule="cosine"
    ),
    "vgg_small": ModelInfo(
        vgg_small,
        "VGG-style, eight 3x3 convolutions with batch norm, for CIFAR-10 on a CPU",
        32,
        in_channels=3,
        dataset="cifar10",
        epochs=14,
        batch_size=64,
        optimizer="momentum",
        lr=0.05,
        schedule="warmup-cosine",
        weight_decay=5e-4,
    ),
    **{
        make.__name__: ModelInfo(
            make,
            f"VGG-{make.__name__[3:]}: 3x3 convolutions, {make.__name__[3:]} weight layers",
            224,
            in_channels=3,
            dataset="cifar10",
            epochs=30,
            batch_size=64,
            optimizer="momentum",
            lr=0.01,
            schedule="cosine",
            weight_decay=5e-4,
        )
        for make in (vgg11, vgg13, vgg16, vgg19)
    },
}


def build(name: str, **config: Any) -> Module:
    """Make a registered network. `config` goes to its function: num_classes, in_channels, image_size, ...

    Raises:
        UnknownName: no such network, with the nearest name as a suggestion.
        ShapeError: the network does not take such an argument, or not such a value.
    """
    if name not in MODELS:
        raise UnknownName("models", "model", name, MODELS)
    make = MODELS[name].make
    unknown = config.keys() - set(make.__annotations__)
    if unknown:
        raise ShapeError(f"[{name}] takes {sorted(make.__annotations__.keys() - {'return'})}; got {sorted(unknown)}")
    return make(**config)
