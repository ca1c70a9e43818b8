"""The networks, by name. Each module holds one family, with its source and its layer table in the docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dlgpu.errors import ShapeError, UnknownName
from dlgpu.models.alexnet import alexnet
from dlgpu.models.dcgan import dcgan_discriminator, dcgan_generator
from dlgpu.models.deep_convnet import deep_convnet
from dlgpu.models.fcn import fcn8s, fcn16s, fcn32s
from dlgpu.models.googlenet import googlenet
from dlgpu.models.inception_v2 import inception_v2
from dlgpu.models.lenet import lenet5, lenet5_1998
from dlgpu.models.mlp import mlp
from dlgpu.models.mobilenet import mobilenet_v1, mobilenet_v2
from dlgpu.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from dlgpu.models.simple_convnet import simple_convnet
from dlgpu.models.squeezenet import squeezenet
from dlgpu.models.vgg import vgg11, vgg13, vgg16, vgg19
from dlgpu.models.vgg_small import vgg_small
from dlgpu.nn import Module

__all__ = [
    "MODELS",
    "ModelInfo",
    "alexnet",
    "build",
    "dcgan_discriminator",
    "dcgan_generator",
    "deep_convnet",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "googlenet",
    "inception_v2",
    "lenet5",
    "lenet5_1998",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "parse_options",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "simple_convnet",
    "squeezenet",
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
    per_pixel: bool = False  # gives the class of each pixel (segmentation)


def _imagenet(make: Callable[..., Module], about: str, lr: float = 0.05) -> ModelInfo:
    """Networks made for 224 x 224 colour images, all of which take CIFAR's 32 x 32 too, and so are trained here."""
    return ModelInfo(
        make,
        about,
        224,
        in_channels=3,
        dataset="cifar10",
        epochs=30,
        batch_size=64,
        optimizer="momentum",
        lr=lr,
        schedule="cosine",
        weight_decay=5e-4,
    )


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
    "alexnet": _imagenet(alexnet, "Krizhevsky et al. 2012: two groups, LRN, dropout", lr=0.01),
    **{
        make.__name__: _imagenet(make, f"VGG-{n}: 3x3 convolutions, {n} weight layers", lr=0.01)
        for n, make in ((11, vgg11), (13, vgg13), (16, vgg16), (19, vgg19))
    },
    "googlenet": _imagenet(googlenet, "Inception v1: four branches, auxiliary classifiers", lr=0.01),
    "inception_v2": _imagenet(inception_v2, "Inception v2: two 3x3 for each 5x5, batch norm"),
    **{
        make.__name__: _imagenet(make, f"ResNet-{n}: residual blocks, {n} weight layers")
        for n, make in ((18, resnet18), (34, resnet34), (50, resnet50), (101, resnet101), (152, resnet152))
    },
    "mobilenet_v1": _imagenet(mobilenet_v1, "depthwise separable convolutions; option width_mult"),
    "mobilenet_v2": _imagenet(mobilenet_v2, "inverted residuals; option width_mult"),
    "squeezenet": _imagenet(
        squeezenet, "fire modules; options version (1.0, 1.1), bypass (none, simple, complex)", lr=0.02
    ),
    **{
        make.__name__: ModelInfo(
            make,
            f"the class of each pixel, in steps of {step}; option trunk (vgg16, small)",
            224,
            in_channels=3,
            dataset="shapes",
            epochs=10,
            batch_size=16,
            lr=2e-3,
            schedule="cosine",
            per_pixel=True,
        )
        for step, make in ((32, fcn32s), (16, fcn16s), (8, fcn8s))
    },
}


def build(name: str, **config: Any) -> Module:
    """Make a registered network. `config` goes to its function: num_classes, in_channels, image_size, ...

    Raises:
        UnknownName: no such network, with the nearest name as a suggestion.
        ShapeError: the network does not take such an argument, or not such a value.
    """
    known = _arguments(name)
    if config.keys() - known.keys():
        raise ShapeError(f"[{name}] takes {sorted(known)}; got {sorted(config.keys() - known.keys())}")
    return MODELS[name].make(**config)


def parse_options(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Arguments for `build` from texts like "width_mult=0.25" or "hidden=100,50", in the types that `name` takes.

    Raises `UnknownName` and `ShapeError` as `build` does, and `ShapeError` for a text that is not of that type.
    """
    known, parsed = _arguments(name), {}
    for option in options:
        key, _, text = option.partition("=")
        if key not in known:
            raise ShapeError(f"[{name}] takes {sorted(known)}; got {[key]}")
        try:
            parsed[key] = PARSERS[known[key]](text)
        except (KeyError, ValueError) as error:
            raise ShapeError(f"[{name}] {key} must be given as {key}=<{known[key]}>; got {option!r}") from error
    return parsed


PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "Sequence[int]": lambda text: tuple(int(part) for part in text.split(",")),
}


def _arguments(name: str) -> dict[str, str]:
    """What the function of a network takes, and of which types."""
    if name not in MODELS:
        raise UnknownName("models", "model", name, MODELS)
    return {key: kind for key, kind in MODELS[name].make.__annotations__.items() if key != "return"}
