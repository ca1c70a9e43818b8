"""Pictures of a training run: curves, filters, activations, saliency, a confusion matrix, masks, a grid of images.

Every function writes one PNG. The same arguments give the same bytes (with the same Matplotlib), and a call that fails
leaves an earlier picture as it was. Importing this module does not import Matplotlib, and drawing never touches pyplot:
there is no global state and no window system to choose.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlgpu.dtypes import is_float
from dlgpu.errors import DtypeError, ShapeError
from dlgpu.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["activations", "class_colours", "confusion", "curves", "filters", "image_grid", "mask", "saliency"]

DPI = 150
MARGIN = 24  # picture pixels around everything
LINE = 1.5  # the height of a line of text, in font sizes
INK, FAINT = "#222222", "#999999"
EDGE = (0.27, 0.47, 0.67)  # round a filter: a colour that neither a grey filter nor the white paper has

# Okabe-Ito colours: distinct to colour-blind readers. The line styles and markers survive a grey print as well.
SPLITS: dict[str, dict[str, Any]] = {
    "train": dict(color="#0072B2", linestyle="-", marker="o"),
    "valid": dict(color="#009E73", linestyle="-.", marker="^"),
    "test": dict(color="#D55E00", linestyle="--", marker="s"),
}


def curves(history: Sequence[Mapping[str, float]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw loss and accuracy against the epoch, side by side.

    Each row of `history` has `epoch` and any of `{split}_loss` and `{split}_accuracy` (a fraction, 0..1) for the splits
    train, valid and test; other keys are ignored. A value that is missing, None or not finite is left out, and the line
    goes on to the next one. The loss axis is logarithmic where the losses span more than a factor of 10. Raises
    `ShapeError` for an empty history, a row without an epoch, or rows without a single loss or accuracy.
    """
    if not len(history):
        raise ShapeError("[viz.curves] history must have at least one row; got none")
    if any("epoch" not in row for row in history):
        raise ShapeError(f"[viz.curves] every row must have an epoch; got keys {sorted(set().union(*history))}")
    epochs = np.array([row["epoch"] for row in history], np.float64)
    losses, percents = _series(history, "loss"), _series(history, "accuracy", 100)
    if not losses and not percents:
        raise ShapeError(
            f"[viz.curves] rows must have a {{split}}_loss or {{split}}_accuracy for a split of {', '.join(SPLITS)}; "
            f"got keys {sorted(set().union(*history))}"
        )

    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = Figure(figsize=(11, 4.4), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    left, right = figure.subplots(1, 2)

    for axes, series, label in (left, losses, "loss"), (right, percents, "accuracy (%)"):
        for split, y in series.items():
            there = np.isfinite(y)
            axes.plot(epochs[there], y[there], **_line(split, there.sum()))
        if not _finite(series).size:
            axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=FAINT)
            axes.set_yticks([])
        pad = max(0.25, 0.02 * float(np.ptp(epochs)))
        axes.set_xlim(epochs.min() - pad, epochs.max() + pad)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_title(label, fontsize=12)
        axes.grid(which="both", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    known = _finite(losses)
    if known.size and known.min() > 0 and known.max() / known.min() > 10:
        left.set_yscale("log")
        # Plain numbers: 0.05 says more than 5 x 10^-2. Beyond three decades the ticks between would touch.
        subs = (1.0, 2.0, 5.0) if known.max() / known.min() < 1e3 else (1.0,)
        left.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.yaxis.set_minor_formatter(NullFormatter())
        left.grid(visible=False, which="minor")
    known = _finite(percents)
    if known.size:
        low, high = min(known.min(), 99.9), max(known.max(), 100)
        span = high - low
        right.set_ylim(low - 0.06 * span, high + 0.02 * span)  # a line at 100 % keeps its full width

    used = [split for split in SPLITS if split in losses or split in percents]
    handles = [Line2D([], [], label=split, **_line(split, 1)) for split in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, handlelength=3.5)
    if title:
        figure.suptitle(title, fontsize=14, parse_math=False)
    _label_last(left, losses, lambda value: f"{value:.3g}")
    _label_last(right, percents, lambda value: f"{value:.2f}")
    _save(figure, path)


def filters(before: np.ndarray, after: np.ndarray, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the first layer's filters before and after training, side by side and in the same order.

    `before` and `after` are floating-point weights of one shape (K, C, R, S); the first 64 filters are drawn. One
    channel is drawn grey, three as RGB, any other number as their mean (the title says so). All filters of a side share
    one scale, from its smallest to its largest weight, written above it; a weight that is not finite counts as the
    smallest. Raises `ShapeError` for another rank, an empty array or two different shapes, `DtypeError` for weights
    that are not floating-point.
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.ndim != 4 or before.shape != after.shape or not before.size:
        raise ShapeError(
            f"[viz.filters] before and after must have one shape (K, C, R, S), not empty; "
            f"got {before.shape} and {after.shape}"
        )
    if not (is_float(before.dtype) and is_float(after.dtype)):
        raise DtypeError(f"[viz.filters] weights must be floating-point; got {before.dtype} and {after.dtype}")
    K, C, R, S = before.shape
    shown = min(K, 64)
    note = f"{R}×{S} filters: " + (f"all {K}" if shown == K else f"the first {shown} of {K}")
    if C not in (1, 3):
        note += f", mean over {C} channels"

    columns = _columns(shown)
    scale = max(1, 600 // (columns * max(R, S)))
    mosaics, heads = [], []
    for weights, name in (before, "before training"), (after, "after training"):
        maps, low, high = _unit(weights[:shown].astype(np.float64))
        tiles = _enlarge(maps, scale)
        framed = np.empty((shown, tiles.shape[1] + 2, tiles.shape[2] + 2, 3))
        framed[:] = EDGE
        framed[:, 1:-1, 1:-1] = tiles
        mosaics.append(_mosaic(framed, columns, framed.shape[1] + 4, framed.shape[2] + 4))
        heads.append(f"{name}\nweights {low:#.3g} to {high:#.3g}".replace("-", "\N{MINUS SIGN}"))

    height, width = mosaics[0].shape[:2]
    pitch = max(width, *(_text_size(head, 11)[0] for head in heads)) + MARGIN
    head_height = _text_size(heads[0], 11)[1] + 8
    figure, left, top = _paper(2 * pitch, head_height + height, f"{title}\n{note}" if title else note)
    for i, (mosaic, head) in enumerate(zip(mosaics, heads, strict=True)):
        middle = left + i * pitch + pitch // 2
        _text(figure, middle, top, head, 11)
        figure.figimage(mosaic, middle - width // 2, top - head_height - height, origin="upper")
    _save(figure, path)


def activations(
    image: np.ndarray,
    layers: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    title: str = "",
    most: int = 16,
) -> None:
    """Draw an image and what each layer answers to it: a row per layer, the first `most` channels, brighter is more.

    `image` is (C, H, W) with one or three channels in 0..1; `layers` maps names to (K, P, Q). All channels of a layer
    share one scale, from its smallest to its largest value. Raises `ShapeError` for other ranks or no layers.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ShapeError(f"[viz.activations] image must be (1 or 3, H, W); got {image.shape}")
    if not layers or any(np.ndim(maps) != 3 or not np.size(maps) for maps in layers.values()):
        shapes = {name: np.shape(maps) for name, maps in layers.items()}
        raise ShapeError(f"[viz.activations] layers must be (K, P, Q) maps, at least one; got {shapes}")
    from matplotlib.figure import Figure

    count = max(min(most, len(maps)) for maps in layers.values())
    cell, gap = 74, 6  # picture pixels
    names = [f"{name}\n{maps.shape[0]} × {maps.shape[1]} × {maps.shape[2]}" for name, maps in layers.items()]
    heading, column = 30 if title else 0, max(_text_size(name, 7)[0] for name in names) + 16
    width = 2 * MARGIN + column + count * (cell + gap)
    height = 2 * MARGIN + heading + (len(layers) + 1) * (cell + gap)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    if title:
        _text(figure, width / 2, height - MARGIN, title, 11)

    def place(row: int, left: int, picture: np.ndarray, **how: Any) -> None:
        bottom = height - MARGIN - heading - (row + 1) * (cell + gap)
        axes = figure.add_axes((left / width, bottom / height, cell / width, cell / height))
        axes.imshow(picture, interpolation="nearest", **how)
        axes.set_axis_off()

    def label(row: int, text: str) -> None:
        lines = text.count("\n") + 1
        middle = height - MARGIN - heading - row * (cell + gap) - (cell - lines * LINE * 7 * DPI / 72) / 2
        _text(figure, MARGIN + (column - 16) / 2, middle, text, 7)

    label(0, "input")
    shown = np.clip(np.nan_to_num(image.astype(np.float64)), 0, 1).transpose(1, 2, 0)
    place(0, MARGIN + column, shown if len(image) == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
    for row, (text, maps) in enumerate(zip(names, layers.values(), strict=True), start=1):
        label(row, text)
        values = np.nan_to_num(np.asarray(maps, np.float64))
        low, high = values.min(), values.max()
        for k in range(min(most, len(values))):
            left = MARGIN + column + k * (cell + gap)
            place(row, left, values[k], cmap="viridis", vmin=low, vmax=high if high > low else low + 1)
    _save(figure, path)


def saliency(
    images: np.ndarray,
    maps: np.ndarray,
    path: str | os.PathLike[str],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    title: str = "",
) -> None:
    """Draw images (N, 1 or 3, H, W), each with its map (N, H, W) beside it: white where the score does not care.

    Each map has its own scale, from zero to its largest value. Raises what `image_grid` raises, and `ShapeError` if
    there is not one map of the image's size for each image.
    """
    images, maps = np.asarray(images), np.asarray(maps, np.float64)
    if images.ndim != 4 or maps.shape != (len(images), *images.shape[2:]):
        raise ShapeError(
            f"[viz.saliency] maps must be (N, H, W) for images (N, C, H, W); got {maps.shape}, {images.shape}"
        )
    from matplotlib import colormaps

    values = images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
    rgb = np.repeat(values, 3 // images.shape[1], axis=1) if images.shape[1] in (1, 3) else values
    known = np.nan_to_num(maps)
    scaled = known / np.maximum(known.max(axis=(1, 2), keepdims=True), 1e-30)
    heat = colormaps["Reds"](scaled)[..., :3].transpose(0, 3, 1, 2)
    image_grid(np.concatenate([rgb, heat], axis=3), path, captions, columns, title)


def confusion(matrix: np.ndarray, classes: Sequence[str], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw a confusion matrix: colour is the share of the row, on a scale that makes rare mistakes visible.

    `matrix` is (K, K) counts, finite and >= 0, of any integer or float dtype: rows are the true class, columns the
    predicted one. `classes` are the K names. Up to 20 classes the counts are written into the cells. Raises
    `ShapeError` for another shape, another number of names, or a count that is negative or not finite.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ShapeError(f"[viz.confusion] matrix must be (K, K) with K >= 1; got {matrix.shape}")
    K = len(matrix)
    if len(classes) != K:
        raise ShapeError(f"[viz.confusion] there must be one name for each of the {K} classes; got {len(classes)}")
    counts = matrix.astype(np.float64)
    if not (np.isfinite(counts).all() and counts.min() >= 0):
        raise ShapeError(f"[viz.confusion] counts must be finite and >= 0; got {counts.min()} .. {counts.max()}")

    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.where(totals > 0, totals, 1)
    cells = [[f"{count:.0f}" if count.is_integer() else f"{count:.3g}" for count in row] for row in counts.tolist()]
    digits = max(len(cell) for row in cells for cell in row)
    # Inches a class takes: room for the widest count, or, without counts, for the class name's height.
    pitch = max(0.45, 0.095 * digits) if K <= 20 else max(0.13, 9 / K)
    step = math.ceil(K / 100)  # beyond 100 names they would touch
    pitch /= step
    font = 9 if K <= 40 else 6.5
    names = [str(name) for name in classes[::step]]
    name_inches = max(_text_size(name, font)[0] for name in names) / DPI
    upright = name_inches > 0.9 * pitch * step

    # The paper is the square plus what stands round it, else the layout would leave blank bands.
    side = max(2.6, K * pitch)
    width = max(side + name_inches + 1.5, _text_size(title, 13)[0] / DPI + 0.4)
    height = side + (name_inches if upright else 0.15) + (0.85 if title else 0.5)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_xticks(range(0, K, step), names, fontsize=font, parse_math=False, rotation=90 if upright else 0)
    axes.set_yticks(range(0, K, step), names, fontsize=font, parse_math=False)
    axes.tick_params(length=0 if K <= 20 else 2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.spines[:].set_color(FAINT)
    if K <= 20:
        for row, column in np.ndindex(K, K):
            dark = share[row, column] > 0.35
            color = "white" if dark else INK if counts[row, column] else FAINT
            axes.text(column, row, cells[row][column], ha="center", va="center", fontsize=8.5, color=color)
    ticks = [0, 0.01, 0.05, 0.2, 0.5, 1]
    bar = figure.colorbar(picture, ax=axes, ticks=ticks, aspect=side / 0.16, fraction=0.16 / side, pad=0.01)
    bar.ax.set_yticklabels([f"{tick:.0%}" for tick in ticks])
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=13, parse_math=False)
    _save(figure, path)


def image_grid(
    images: np.ndarray,
    path: str | os.PathLike[str],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    title: str = "",
) -> None:
    """Draw images row by row, each pixel as a whole number of picture pixels.

    `images` is (N, C, H, W) with one channel (grey) or three (RGB), uint8 or floating-point in 0..1 (clipped; NaN is
    black). `captions` are N strings, of one line or more, drawn below the images. Raises `ShapeError` for another rank,
    no images, another number of channels or captions, or fewer than one column; `DtypeError` for another dtype.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.size or images.shape[1] not in (1, 3):
        raise ShapeError(f"[viz.image_grid] images must be (N, 1 or 3, H, W), not empty; got {images.shape}")
    if images.dtype != np.uint8 and not is_float(images.dtype):
        raise DtypeError(f"[viz.image_grid] images must be uint8 or floating-point; got {images.dtype}")
    if captions is not None and len(captions) != len(images):
        raise ShapeError(
            f"[viz.image_grid] there must be one caption for each of the {len(images)} images; got {len(captions)}"
        )
    if columns < 1:
        raise ShapeError(f"[viz.image_grid] columns must be at least 1; got {columns}")

    N, _, H, W = images.shape
    columns = min(columns, N)
    values = images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
    tiles = _enlarge(np.clip(np.nan_to_num(values), 0, 1), max(1, 140 // max(H, W)))
    height, width = tiles.shape[1:3]
    texts = [str(text) for text in captions or ()]
    sizes = [_text_size(text, 8) for text in texts]
    # A caption wider than its image moves the columns apart: captions never touch and are never cut.
    pitch_x = max([width, *(size[0] for size in sizes)]) + 10
    pitch_y = height + max([0, *(size[1] for size in sizes)]) + 10
    mosaic = _mosaic(tiles, columns, pitch_y, pitch_x)
    figure, left, top = _paper(mosaic.shape[1], mosaic.shape[0], title)
    figure.figimage(mosaic, left, top - mosaic.shape[0], origin="upper")
    for i, text in enumerate(texts):
        row, column = divmod(i, columns)
        _text(figure, left + column * pitch_x + pitch_x // 2, top - row * pitch_y - height - 4, text, 8)
    _save(figure, path)


def class_colours(count: int) -> np.ndarray:
    """A colour for each of `count` classes, uint8 (count, 3): those of PASCAL VOC, whose background is black.

    Bit 3i + c of a class is bit 7 - i of its channel c. Raises `ShapeError` unless count is in 1..256.
    """
    if not 1 <= count <= 256:
        raise ShapeError(f"[viz.class_colours] there are colours for 1 to 256 classes; got {count}")
    channel, classes = np.arange(3), np.arange(count)[:, None]
    return np.sum([(classes >> (3 * i + channel) & 1) << (7 - i) for i in range(3)], axis=0).astype(np.uint8)


def mask(classes: np.ndarray, count: int, path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> None:
    """Write the class of each pixel, integers (H, W), as a PNG with a palette: its values are the classes, and it shows
    their `class_colours`.

    `size`: (height, width) to enlarge or shrink it to, without blending. Raises `ShapeError` for another rank, no
    pixels, or a class that is not one of `count`; `DtypeError` for numbers that are not integers.
    """
    classes, colours = np.asarray(classes), class_colours(count)
    if classes.dtype.kind not in "iu":
        raise DtypeError(f"[viz.mask] classes must be integers; got {classes.dtype}")
    if classes.ndim != 2 or not classes.size:
        raise ShapeError(f"[viz.mask] classes must be (H, W), not empty; got {classes.shape}")
    if not 0 <= classes.min() <= classes.max() < count:
        raise ShapeError(f"[viz.mask] classes must be in 0..{count - 1}; got {classes.min()}..{classes.max()}")
    from PIL import Image

    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette(colours.tobytes())
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    with atomic_file(Path(path)) as file:
        picture.save(file, format="PNG")


def _series(history: Sequence[Mapping[str, float]], metric: str, factor: float = 1) -> dict[str, np.ndarray]:
    """Split -> one value a row (NaN where there is none), for the splits that the history knows."""
    series = {}
    for split in SPLITS:
        values = [row.get(f"{split}_{metric}") for row in history]
        if any(value is not None for value in values):
            series[split] = factor * np.array([math.nan if value is None else value for value in values], np.float64)
    return series


def _finite(series: Mapping[str, np.ndarray]) -> np.ndarray:
    """All finite values of all splits."""
    values = np.concatenate([np.empty(0), *series.values()])
    return values[np.isfinite(values)]


def _line(split: str, points: int) -> dict[str, Any]:
    """The style of a split's line: a marker on every point while there are few, on about ten when there are many."""
    every = 1 if points <= 25 else points // 10
    return dict(SPLITS[split], linewidth=1.8, markersize=4.5, markevery=every)


def _label_last(axes: Axes, series: Mapping[str, np.ndarray], text: Callable[[float], str]) -> None:
    """Write each line's last value right of the axes, moved apart where two would overlap."""
    axes.get_ylim()  # settles the limits, which transData otherwise learns only when drawn
    to_axes = axes.transData - axes.transAxes
    last = {split: float(y[np.isfinite(y)][-1]) for split, y in series.items() if np.isfinite(y).any()}
    wanted = sorted((float(to_axes.transform((0, value))[1]), split) for split, value in last.items())
    if not wanted:
        return
    heights = [height for height, _ in wanted]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + 0.06)  # a line of text, as a share of the axes' height
    shift = (sum(heights) - sum(height for height, _ in wanted)) / len(heights)
    for height, (_, split) in zip(heights, wanted, strict=True):
        label = text(last[split])
        axes.text(
            1.01, height - shift, label, transform=axes.transAxes, va="center_baseline", color=SPLITS[split]["color"]
        )


def _columns(n: int) -> int:
    """The columns of a grid of `n`: full rows where that does not make it too wide (32 -> 8), else nearly square."""
    root = math.sqrt(n)
    return next((c for c in range(math.ceil(root), int(2 * root) + 1) if n % c == 0), math.ceil(root))


def _unit(weights: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Weights (K, C, R, S) -> maps in 0..1 of one or three channels, and the weights that 0 and 1 stand for."""
    with np.errstate(invalid="ignore"):  # inf - inf, in a run that diverged
        maps = weights if weights.shape[1] in (1, 3) else weights.mean(axis=1, keepdims=True)
    known = maps[np.isfinite(maps)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    maps = np.where(np.isfinite(maps), maps, low)
    return (maps - low) / (high - low or 1), low, high


def _enlarge(maps: np.ndarray, scale: int) -> np.ndarray:
    """(N, 1 or 3, H, W) -> (N, scale * H, scale * W, 3)."""
    tiles = np.repeat(maps, 3 // maps.shape[1], axis=1).transpose(0, 2, 3, 1)
    return tiles.repeat(scale, axis=1).repeat(scale, axis=2)


def _mosaic(tiles: np.ndarray, columns: int, pitch_y: int, pitch_x: int) -> np.ndarray:
    """Tiles (N, H, W, 3) on white, row by row, each at the top centre of its cell of (pitch_y, pitch_x)."""
    N, height, width, _ = tiles.shape
    mosaic = np.ones((-(-N // columns) * pitch_y, columns * pitch_x, 3))
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * pitch_y, (i % columns) * pitch_x + (pitch_x - width) // 2
        mosaic[y : y + height, x : x + width] = tile
    return mosaic


def _paper(width: int, height: int, title: str) -> tuple[Figure, int, int]:
    """A figure with the title and room for (width, height) picture pixels; that room's left and top pixel.

    Mosaics are placed by the pixel, not inside axes, so that no pixel of theirs is ever resampled.
    """
    from matplotlib.figure import Figure

    title_width, title_height = _text_size(title, 12)
    full_width = max(width, title_width) + 2 * MARGIN
    top = MARGIN + height
    full_height = top + (title_height + MARGIN // 2 if title else 0) + MARGIN
    figure = Figure(figsize=(full_width / DPI, full_height / DPI), dpi=DPI)
    if title:
        _text(figure, full_width // 2, full_height - MARGIN, title, 12)
    return figure, (full_width - width) // 2, top


def _text(figure: Figure, x: float, y: float, text: str, size: float) -> None:
    """Text whose top centre is at a picture pixel; `$` is a dollar sign."""
    from matplotlib.transforms import IdentityTransform

    for i, line in enumerate(text.split("\n")):
        baseline = round(y - (1 + LINE * i) * size * DPI / 72)  # by hand: Matplotlib's lines jitter with their letters
        place = dict(ha="center", va="baseline", transform=IdentityTransform())
        figure.text(x, baseline, line, fontsize=size, color=INK, parse_math=False, **place)  # type: ignore[arg-type]


def _text_size(text: str, size: float) -> tuple[int, int]:
    """(width, height) in picture pixels of lines of text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font, lines, pixels = FontProperties(size=size), text.split("\n"), DPI / 72
    width = max(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines)
    return math.ceil(width * pixels), math.ceil(LINE * size * len(lines) * pixels)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the PNG whole or not at all; without Matplotlib's version in it, which would change the bytes."""
    with atomic_file(Path(path)) as file:
        figure.savefig(file, format="png", dpi="figure", facecolor="white", metadata={"Software": None})
