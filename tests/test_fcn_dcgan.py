"""FCN and DCGAN: published sizes, the dense classifier as a convolution, bilinear steps, gradients, training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dlgpu
import dlgpu.functional as F
from dlgpu import Tensor, data, insight, metrics, models, nn, optim, transfer
from dlgpu.ensemble import Ensemble
from dlgpu.errors import CheckpointError, DlgpuError, DtypeError, ShapeError
from dlgpu.models import fcn
from dlgpu.nn.summary import layer_rows
from dlgpu.testing import assert_close, gradcheck
from dlgpu.train import evaluate, predictions

TINY = fcn.Trunk((1, 1, 1, 1, 1), (2, 3, 2, 3, 4), 5, 3, batch_norm=False)
FCNS = (models.fcn32s, models.fcn16s, models.fcn8s)


def tiny(stride: int, num_classes: int = 3, image_size: int = 96) -> fcn.FCN:
    return fcn.FCN(stride, TINY, num_classes, 2, image_size, dropout=0.0)


def scored(net: fcn.FCN) -> fcn.FCN:
    """With random numbers where scores start at zero: as in the middle of training."""
    for layer in (net.classifier[-1], *net.scores):
        nn.init.normal_(layer.weight, 0.0, 0.5)
    return net


# --- FCN ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FCNS)
def test_vgg16_has_the_papers_parameters(make: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("uniform_", "normal_", "zeros_"):  # memory that is never written is never taken
        monkeypatch.setattr(nn.init, name, lambda tensor, *settings: tensor)
    shapes = {name: p.shape for name, p in make().named_parameters()}
    assert shapes["features.28.weight"] == (512, 512, 3, 3)
    assert shapes["classifier.0.weight"] == (4096, 512, 7, 7)
    assert shapes["classifier.3.weight"] == (4096, 4096, 1, 1)
    assert shapes["classifier.6.weight"] == (21, 4096, 1, 1)
    shared = sum(math.prod(s) for name, s in shapes.items() if name.startswith(("features", "classifier")))
    # 14,714,688 in the convolutions, 102,764,544 + 16,781,312 in the former dense layers, 86,037 in the scores
    assert shared == 134_346_581  # "134M" in table 1
    extra = {name: s for name, s in shapes.items() if not name.startswith(("features", "classifier"))}
    stride = int(make.__name__[3:-1])
    expected: dict[str, tuple[int, ...]] = {}
    for index, channels in enumerate({32: (), 16: (512,), 8: (512, 256)}[stride]):
        expected[f"scores.{index}.weight"] = (21, channels, 1, 1)
        expected[f"scores.{index}.bias"] = (21,)
        expected[f"doubled.{index}.weight"] = (21, 21, 4, 4)
    assert extra == {**expected, "enlarged.weight": (21, 1, 2 * stride, 2 * stride)}


def test_sizes_of_the_maps() -> None:
    rows = {row.name: row.output_shape[1:] for row in layer_rows(models.fcn8s(5, 3, 64, "small"), (1, 3, 64, 96))}
    assert rows["classifier.6"] == (5, 2, 3)
    assert (rows["doubled.0"], rows["scores.0"]) == ((5, 4, 6), (5, 4, 6))
    assert (rows["doubled.1"], rows["scores.1"]) == ((5, 8, 12), (5, 8, 12))
    assert rows["enlarged"] == (5, 64, 96)


@pytest.mark.parametrize("make", FCNS)
def test_output_is_as_large_as_the_image(make: Callable[..., nn.Module]) -> None:
    net = make(num_classes=4, in_channels=1, image_size=32, trunk="small")
    assert net(dlgpu.rand(2, 1, 64, 32)).shape == (2, 4, 64, 32)


def test_a_dense_classifier_becomes_a_convolution() -> None:
    """On an image whose last map is just as large as the classifier's filter, the middle score is the dense answer."""
    dense = nn.Module()
    dense.features = nn.Sequential(
        *(layer for i, o in ((2, 2), (2, 3), (3, 2), (2, 3), (3, 4)) for layer in models.vgg.vgg_block(i, o, 1, False))
    )
    dense.classifier = nn.Sequential(
        nn.Linear(4 * 9, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 3)
    )
    x = dlgpu.randn(2, 2, 96, 96)
    expected = dense.classifier(dense.features(x).flatten(1))
    net = tiny(32)
    assert fcn.load_vgg(net, dense.state_dict()) == ["enlarged.weight"]
    scores = net.classifier(net.features(x))
    assert scores.shape == (2, 3, 3, 3)
    np.testing.assert_allclose(scores.numpy()[:, :, 1, 1], expected.numpy(), rtol=1e-4, atol=1e-6)
    other = tiny(32, num_classes=7)  # another number of classes: all but the scores
    assert fcn.load_vgg(other, dense.state_dict()) == ["classifier.6.weight", "classifier.6.bias", "enlarged.weight"]
    with pytest.raises(CheckpointError, match="some weights must fit FCN"):
        fcn.load_vgg(tiny(32), models.lenet5().state_dict())


def test_finer_networks_start_where_the_coarse_one_stands() -> None:
    """With the scores of pool4 at zero, FCN-16s from FCN-32s says the same up to the interpolation's two steps."""
    dlgpu.manual_seed(1)
    coarse, fine = scored(tiny(32)), tiny(16)
    left = transfer.load_matching(fine, coarse.state_dict())
    assert left == ["scores.0.weight", "scores.0.bias", "doubled.0.weight", "enlarged.weight"]
    x = dlgpu.randn(1, 2, 160, 160)
    y, z = coarse(x).numpy(), fine(x).numpy()
    # One step of 32, or of 2 and then 16: both are linear between the same scores, but the second cuts the corner at
    # each score, from a quarter before it to a quarter behind: by an eighth of the second difference, along
    # each axis.
    scores = coarse.classifier(coarse.features(x)).numpy()
    bound = sum(np.abs(np.diff(scores, n=2, axis=axis)).max() for axis in (-1, -2)) / 8
    inner = np.s_[..., 48:-48, 48:-48]
    assert np.abs(y[inner] - z[inner]).max() <= bound
    assert np.abs(y[inner]).max() > bound  # else the line above says nothing


@pytest.mark.parametrize("factor", [2, 8, 32])
@pytest.mark.parametrize("grouped", [False, True])
def test_enlarging_is_bilinear_interpolation(factor: int, grouped: bool) -> None:
    layer = fcn._enlarge(2, factor, groups=2 if grouped else 1)
    image = np.random.default_rng(0).random((1, 2, 4, 3), np.float32)
    got = layer(dlgpu.tensor(image)).numpy()
    assert got.shape == (1, 2, 4 * factor, 3 * factor)
    # Output pixel p lies at (p + 1/2) / factor - 1/2 between the input pixels; beyond them is zero.
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))

    def interpolate(values: np.ndarray, axis: int) -> np.ndarray:
        place = (np.arange(factor * (values.shape[axis] - 2)) + 0.5) / factor + 0.5
        low = place.astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(4)])
        return (1 - share) * values.take(low, axis) + share * values.take(low + 1, axis)

    np.testing.assert_allclose(got, interpolate(interpolate(padded, 2), 3), atol=1e-6)


def test_bilinear_filters_of_odd_size() -> None:
    weight = nn.Parameter(np.zeros((1, 1, 3, 4), np.float32))
    nn.init.bilinear_(weight)
    assert_close(weight.numpy()[0, 0], np.outer([0.5, 1, 0.5], [0.25, 0.75, 0.75, 0.25]).astype(np.float32))


def test_only_the_last_enlarging_is_fixed() -> None:
    fixed = [name for name, p in models.fcn8s(3, 1, 32, "small").named_parameters() if not p.requires_grad]
    assert fixed == ["enlarged.weight"]


def gradients(net: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Of the input and of every trained parameter, against numerical differentiation."""
    places = [
        (module, name) for module in net.modules() for name, p in tuple(module._parameters.items()) if p.requires_grad
    ]
    values = [getattr(module, name).detach() for module, name in places]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        for (module, name), value in zip(places, parameters, strict=True):
            delattr(module, name)
            setattr(module, name, value)
        return loss(net(x))

    gradcheck(run, x, *values)


def test_gradients_through_the_skips() -> None:
    """The trunk's kinks (ReLU, max) stay away from float64 steps along one direction for this seed."""
    dlgpu.manual_seed(3)
    net = scored(tiny(8, image_size=32)).to(dtype="float64")
    target = np.random.default_rng(0).integers(0, 3, (2, 32, 32))
    target[0, :5] = -100
    gradients(net, lambda y: F.cross_entropy(y, target), dlgpu.randn(2, 2, 32, 32, dtype="float64"))


def test_fcn_learns_a_square() -> None:
    """Dark or bright, pixel by pixel: after some steps nearly all are right, edges included."""
    dlgpu.manual_seed(0)
    net = models.fcn8s(2, 1, 32, "small", dropout=0.0)
    adam = optim.Adam([p for p in net.parameters() if p.requires_grad], lr=3e-3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        masks = np.zeros((8, 32, 32), np.int64)
        for mask, (row, column) in zip(masks, rng.integers(0, 16, (8, 2)), strict=True):
            mask[row : row + 16, column : column + 16] = 1
        adam.zero_grad()
        loss = F.cross_entropy(net(dlgpu.tensor(masks[:, None].astype(np.float32))), masks)
        loss.backward()
        adam.step()
    net.eval()
    predicted = net(dlgpu.tensor(masks[:, None].astype(np.float32))).argmax(1).numpy()
    assert metrics.mean_iou(metrics.confusion(masks, predicted, 2)) > 0.7


# --- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    labels = np.array([[0, 0, 1], [1, 2, -100]])
    predicted = np.array([[0, 1, 1], [1, 0, 2]])
    matrix = metrics.confusion(labels, predicted, 4)
    np.testing.assert_array_equal(matrix, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert metrics.accuracy(matrix) == 3 / 5
    # class 0: 1 of {0, 0, one taken for it}; 1: 2 of 3; 2: 0 of 1; class 3 does not occur
    assert metrics.mean_iou(matrix) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert math.isnan(metrics.accuracy(np.zeros((2, 2), int)))
    assert math.isnan(metrics.mean_iou(np.zeros((2, 2), int)))


def test_metrics_refuse() -> None:
    with pytest.raises(ShapeError, match=r"one shape; got \(2,\), \(3,\)"):
        metrics.confusion(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(ShapeError, match=r"labels must be in 0..1; got 0..2"):
        metrics.confusion(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(DtypeError, match=r"integers; got float64 and int64"):
        metrics.confusion(np.zeros(2), np.zeros(2, int), 2)


# --- DCGAN --------------------------------------------------------------------------------------------------------

GENERATOR_MAPS = {
    28: [(256, 7, 7), (128, 14, 14), (1, 28, 28)],
    32: [(512, 4, 4), (256, 8, 8), (128, 16, 16), (3, 32, 32)],
    64: [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 64, 64)],  # the paper's figure 1
}


@pytest.mark.parametrize("size", GENERATOR_MAPS)
def test_dcgan_maps(size: int) -> None:
    channels = GENERATOR_MAPS[size][-1][0]
    narrow = 8  # a sixteenth of the paper's widths
    maps = [(c if c == channels else c // 16, h, w) for c, h, w in GENERATOR_MAPS[size]]
    generator = models.dcgan_generator(size, channels, latent=10, width=narrow)
    rows = [row for row in layer_rows(generator, (2, 10, 1, 1)) if row.kind == "ConvTranspose2d"]
    assert [row.output_shape[1:] for row in rows] == maps
    discriminator = models.dcgan_discriminator(size, channels, narrow)
    rows = [row for row in layer_rows(discriminator, (2, channels, size, size)) if row.kind == "Conv2d"]
    assert [row.output_shape[1:] for row in rows] == [*maps[-2::-1], (1, 1, 1)]
    images = generator(dlgpu.randn(2, 10, 1, 1))
    assert images.shape == (2, channels, size, size)
    assert np.abs(images.numpy()).max() <= 1
    assert discriminator(images).shape == (2, 1)
    normalised = [isinstance(layer, nn.BatchNorm2d) for layer in (*generator, *discriminator)]
    assert sum(normalised) == 2 * len(maps) - 3  # all but at the images and at the answer
    for net in (generator, discriminator):
        values = np.concatenate([p.numpy().ravel() for name, p in net.named_parameters() if p.ndim == 4])
        assert abs(values.std() / 0.02 - 1) < 4 / math.sqrt(2 * values.size)


def test_dcgan_gradients() -> None:
    """The whole chain from the noise to the discriminator's answer."""
    dlgpu.manual_seed(1)
    both = nn.Sequential(*models.dcgan_generator(28, 1, 3, 2), *models.dcgan_discriminator(28, 1, 2))
    for layer in both:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.3)  # large enough to be curved
    for i, layer in enumerate(both):
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            setattr(both, str(i), nn.Softplus())  # no kinks
    both.to(dtype="float64")
    gradients(both, lambda y: F.softplus(-y).sum(), dlgpu.randn(2, 3, 1, 1, dtype="float64"))


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: models.fcn8s(image_size=48),
            "[fcn8s] height and width must be multiples of 32 (five poolings); got 48",
        ),
        (lambda: models.fcn32s(num_classes=0), "[fcn32s] num_classes must be an int >= 1; got 0"),
        (lambda: models.fcn16s(in_channels=-1), "[fcn16s] in_channels must be an int >= 1; got -1"),
        (lambda: models.fcn16s(trunk="smal"), "[fcn16s] unknown trunk 'smal'; Did you mean 'small'?"),
        (
            lambda: models.fcn8s(2, 1, 32, "small")(dlgpu.zeros(1, 1, 32, 40)),
            "[fcn8s] height and width must be multiples of 32 (five poolings); got 32 x 40",
        ),
        (lambda: models.dcgan_generator(30), "[dcgan_generator] image_size must be one of 28, 32, 64; got 30"),
        (lambda: models.dcgan_discriminator(64, 0), "[dcgan_discriminator] in_channels must be an int >= 1; got 0"),
        (lambda: models.dcgan_generator(latent=0), "[dcgan_generator] latent must be an int >= 1; got 0"),
        (
            lambda: nn.init.bilinear_(nn.Parameter(np.zeros((3, 2, 4, 4), np.float32))),
            "[bilinear_] filters must be (C, C, R, S) or (C, 1, R, S); got (3, 2, 4, 4)",
        ),
    ],
)
def test_bad_sizes(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DlgpuError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# --- shapes, and FCN in a run -------------------------------------------------------------------------------------


def test_shapes_are_always_the_same() -> None:
    train, test = data.load("shapes", train=True), data.load("shapes", train=False)
    assert (train.images.shape, train.labels.shape) == ((1000, 3, 64, 64), (1000, 64, 64))
    assert (test.images.shape, test.per_pixel) == ((200, 3, 64, 64), True)
    assert train.classes == ("background", "disc", "square", "triangle")
    again = data.shapes(train=False)
    np.testing.assert_array_equal(again.images, test.images)
    np.testing.assert_array_equal(again.labels, test.labels)
    assert set(np.unique(test.labels)) == {0, 1, 2, 3}
    assert not any((test.images[i] == train.images).all((1, 2, 3)).any() for i in range(5))


def test_labels_per_pixel_are_checked() -> None:
    images = np.zeros((2, 3, 4, 5), np.uint8)
    assert not data.Dataset(images, np.zeros(2, np.int64), ("a",), "x").per_pixel
    assert data.Dataset(images, np.zeros((2, 4, 5), np.int64), ("a",), "x").subset([1]).per_pixel
    with pytest.raises(DlgpuError, match=r"labels \(N,\) or \(N, H, W\); got \(2, 3, 4, 5\) and \(2, 5, 4\)"):
        data.Dataset(images, np.zeros((2, 5, 4), np.int64), ("a",), "x")


def test_pixels_count_alike_everywhere() -> None:
    """Accuracy is one number, by whatever way; no mistakes are listed; an ensemble of one network twice is it."""
    dlgpu.manual_seed(0)
    net, images = scored(models.fcn8s(4, 3, 64, "small")), data.shapes(train=False).subset(slice(6))
    batches = data.DataLoader(images, 4, prefetch=0)
    loss, accuracy = evaluate(net, batches)
    judgement = insight.judge(net, batches, 4)
    predicted = np.concatenate([logits.argmax(1).numpy() for _, _, logits in predictions(net, batches)])
    assert accuracy == pytest.approx((predicted == images.labels).mean())
    assert judgement.accuracy == pytest.approx(accuracy)
    assert judgement.matrix.sum() == images.labels.size
    assert judgement.mean_iou == metrics.mean_iou(metrics.confusion(images.labels, predicted, 4))
    assert judgement.mistakes == []
    assert loss > 0
    both = Ensemble([net, net])
    np.testing.assert_allclose(evaluate(both, batches), (loss, accuracy), rtol=1e-5)
