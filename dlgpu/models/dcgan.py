"""DCGAN: two networks that train each other to make images (Radford, Metz and Chintala 2016, arXiv:1511.06434).

The generator turns noise into an image by transposed convolutions of stride 2, the discriminator tells images from
forgeries by convolutions of stride 2. No pooling, no dense layers, batch normalisation everywhere but at the images,
ReLU and tanh in the one, leaky ReLU (0.2) in the other, weights from N(0, 0.02). The paper's 64x64 generator has

    noise 100 -> 1024 x 4 x 4 -> 512 x 8 x 8 -> 256 x 16 x 16 -> 128 x 32 x 32 -> 3 x 64 x 64

32x32 has one doubling less, and 28x28 (MNIST) starts at 7x7 and doubles twice. `width` is the number of channels next
to the image (128 in the paper); filters are 4x4, which a stride of 2 covers evenly. The discriminator is the mirror
image. `dlgpu.gan` trains the two (Adam, lr 2e-4, betas (0.5, 0.999), batch 128).
"""

from __future__ import annotations

from itertools import pairwise

from dlgpu import nn
from dlgpu.errors import ShapeError
from dlgpu.nn.module import check_positive

# image size: (smallest map, doublings)
SIZES = {28: (7, 2), 32: (4, 3), 64: (4, 4)}


def dcgan_generator(image_size: int = 64, in_channels: int = 3, latent: int = 100, width: int = 128) -> nn.Sequential:
    """Noise (N, latent, 1, 1) -> images (N, in_channels, image_size, image_size) in -1..1."""
    start, widths = _plan("dcgan_generator", image_size, in_channels, latent=latent, width=width)
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, widths[-1], start, bias=False)]
    for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True):
        layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, in_channels, 4, 2, 1), nn.Tanh()]
    return _initialised(nn.Sequential(*layers))


def dcgan_discriminator(image_size: int = 64, in_channels: int = 3, width: int = 128) -> nn.Sequential:
    """Images (N, in_channels, image_size, image_size) in -1..1 -> (N, 1) logits, positive for "real"."""
    start, widths = _plan("dcgan_discriminator", image_size, in_channels, width=width)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(widths[-1], 1, start), nn.Flatten()]
    return _initialised(nn.Sequential(*layers))


def _plan(where: str, image_size: int, in_channels: int, **sizes: int) -> tuple[int, list[int]]:
    """The smallest map's size, and the channels of each map from the image inwards."""
    check_positive(where, in_channels=in_channels, **sizes)
    if image_size not in SIZES:
        raise ShapeError(f"[{where}] image_size must be one of {', '.join(map(str, SIZES))}; got {image_size}")
    start, doublings = SIZES[image_size]
    return start, [sizes["width"] << level for level in range(doublings)]


def _initialised(net: nn.Sequential) -> nn.Sequential:
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
    return net
