"""Segmentation by FCN (Long et al. 2015): `python examples/segmentation.py` writes segmentation.png.

Discs, squares and triangles of any colour on a busy background; every pixel is to be told what it belongs to. FCN-32s
gives one score per 32 x 32 pixels: four for a whole picture of 64 x 64, so it can say what is in which corner and no
more. FCN-16s and FCN-8s start from its weights and add the scores of finer maps. Three minutes of one CPU core
(measured: 190 s).
"""

import argparse
from pathlib import Path

import numpy as np

import dlgpu
import dlgpu.functional as F
from dlgpu import metrics, models, optim, transfer, viz
from dlgpu.data.shapes import SHAPES_CLASSES, SHAPES_SIZE, scenes

COLOURS = np.array([(0.93, 0.93, 0.93), (0.84, 0.37, 0.0), (0.0, 0.45, 0.7), (0.0, 0.62, 0.45)], np.float32)
NETS = {"FCN-32s": models.fcn32s, "FCN-16s": models.fcn16s, "FCN-8s": models.fcn8s}


def learn(net: models.fcn.FCN, steps: int, batch: int, seed: int) -> None:
    optimizer = optim.Adam([p for p in net.parameters() if p.requires_grad], lr=2e-3)
    schedule, rng = optim.SCHEDULES["cosine"](1), np.random.default_rng(seed)
    for step in range(steps):
        schedule.apply(optimizer, [2e-3], step / steps)
        images, masks = scenes(batch, rng)
        optimizer.zero_grad()
        F.cross_entropy(net(dlgpu.tensor(images - 0.5)), masks).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=600, help="batches for FCN-32s; half for the others (default: 600)"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--judged", type=int, default=200, help="new pictures to judge by (default: 200)")
    parser.add_argument("--out", type=Path, default=Path("segmentation.png"))
    options = parser.parse_args()

    images, masks = scenes(options.judged, np.random.default_rng(12345))
    shown, columns, captions = images[:6], [], []
    weights = None
    for number, (name, make) in enumerate(NETS.items()):
        dlgpu.manual_seed(0)
        net = make(len(SHAPES_CLASSES), 3, SHAPES_SIZE, "small", dropout=0.1)
        if weights is not None:
            transfer.load_matching(net, weights)
        learn(net, options.steps if weights is None else options.steps // 2, options.batch, seed=number)
        weights = net.state_dict()
        with dlgpu.no_grad():
            predicted = net.eval()(dlgpu.tensor(images - 0.5)).argmax(1).numpy()
        matrix = metrics.confusion(masks, predicted, len(SHAPES_CLASSES))
        print(f"{name:<8} pixel accuracy {metrics.accuracy(matrix):.2%}, mean IoU {metrics.mean_iou(matrix):.2%}")
        columns.append(COLOURS[predicted[:6]].transpose(0, 3, 1, 2))
        captions.append(f"{name}, mean IoU {metrics.mean_iou(matrix):.0%}")
    columns = [shown, *columns, COLOURS[masks[:6]].transpose(0, 3, 1, 2)]
    captions = ["picture", *captions, "truth"]
    rows = len(shown)
    texts = [""] * (len(columns) * (rows - 1)) + captions
    grid = np.stack(columns, axis=1).reshape(-1, 3, SHAPES_SIZE, SHAPES_SIZE)
    viz.image_grid(grid, options.out, texts, columns=len(columns), title="What does each pixel belong to?")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
