"""report.html of a run: one file with everything inside, to look at and to send to somebody."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dlgpu import checkpoint, insight, viz
from dlgpu.data import Dataset
from dlgpu.files import atomic_file
from dlgpu.nn.summary import layer_rows
from dlgpu.run import Config, first_filters, load_model
from dlgpu.train import Row

MISTAKES = 24

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.about { color: #555; margin-top: .2rem; }
img { width: auto; max-width: max(100%, 34rem); height: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.number, th.number { text-align: right; }
.wide { overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1.2rem 0; }
.figures div { font-size: 1.8rem; } .figures span { display: block; font-size: .85rem; color: #555; }
"""


def write(folder: Path, which: str = "best", test: Dataset | None = None) -> Path:
    """Evaluate the run's network on its test images and write report.html into its folder; returns the file.

    `test` spares loading the data again. Raises `CheckpointError` if the folder holds no finished checkpoint.
    """
    model, config = load_model(folder, which)
    _, rest = checkpoint.load(folder / f"{which}.safetensors")
    history: list[Row] = checkpoint.load(folder / "last.safetensors")[1]["history"]
    test = config.complete()[2] if test is None else test
    judgement = insight.judge(model, config.evaluation_batches(test), len(config.classes))
    rows = layer_rows(model, (1, config.in_channels, config.image_size, config.image_size))
    figures = {
        "test accuracy": f"{judgement.accuracy:.2%}",
        **(
            {"mean IoU": f"{judgement.mean_iou:.2%}"}
            if test.per_pixel
            else {"mistakes": f"{len(judgement.mistakes):,} of {len(test):,}"}
        ),
        "parameters": f"{sum(p.size for p in model.parameters()):,}",
        "epochs": f"{len(history)} ({rest['epoch']} is shown)",
        "training time": _duration(sum(row["seconds"] for row in history)),
    }
    parts = [
        f"<h1>{_text(config.model)} on {_text(config.dataset)}</h1>",
        f'<p class="about">{_text(_settings(config))}</p>',
        '<div class="figures">'
        + "".join(f"<div>{_text(value)}<span>{_text(name)}</span></div>" for name, value in figures.items())
        + "</div>",
        "<h2>Curves</h2>",
        _picture("loss and accuracy per epoch", lambda path: viz.curves(history, path)),
        "<h2>Confusion matrix</h2>",
        _picture("true by predicted classes", lambda path: viz.confusion(judgement.matrix, config.classes, path)),
    ]
    if not test.per_pixel:
        parts += ["<h2>Worst mistakes</h2>", _mistakes(judgement.mistakes, test, config.classes)]
    before, after = first_filters(config.build_model(), config), first_filters(model, config)
    if before is not None and after is not None:
        parts += ["<h2>First layer</h2>", _picture("filters", lambda path: viz.filters(before, after, path))]
    parts += [
        "<h2>Layers</h2>",
        _table(
            ("layer", "kind", "output shape", "parameters", "MFLOP"),
            [
                (row.name, row.kind, " × ".join(map(str, row.output_shape)), _count(row.parameters), _mflop(row.flops))
                for row in rows
            ],
            numbers=(3, 4),
        ),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(config.model)} on {_text(config.dataset)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = folder / "report.html"
    with atomic_file(path) as file:
        file.write(page.encode())
    return path


def _mistakes(mistakes: Sequence[insight.Mistake], test: Dataset, classes: Sequence[str]) -> str:
    if not mistakes:
        return "<p>None.</p>"
    shown = mistakes[:MISTAKES]
    images = np.stack([test.images[m.index] for m in shown])
    captions = [f"{classes[m.label]} taken for\n{classes[m.predicted]} ({m.probability:.1%})" for m in shown]
    return "<p>Wrong answers, the surest first.</p>" + _picture(
        "wrong answers", lambda path: viz.image_grid(images, path, captions, columns=6)
    )


def _settings(config: Config) -> str:
    parts = [
        f"{config.optimizer}, lr {config.lr:g} ({config.schedule}), batch {config.batch_size}",
        f"weight decay {config.weight_decay:g}" if config.weight_decay else "",
        f"augmentation {', '.join(config.augment)}" if config.augment else "",
        f"seed {config.seed}, {config.device}",
    ]
    return "; ".join(part for part in parts if part)


def _picture(alt: str, draw: Callable[[Path], None]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        data = base64.b64encode(path.read_bytes()).decode()
    return f'<div class="wide"><img alt="{_text(alt)}" src="data:image/png;base64,{data}"></div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if i in numbers else "" for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{_text(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    body = "\n".join([line("th", head), *(line("td", row) for row in rows)])
    return f'<div class="wide"><table>\n{body}\n</table></div>'


def _count(parameters: int) -> str:
    return f"{parameters:,}" if parameters else ""


def _mflop(flops: float) -> str:
    return f"{flops / 1e6:,.2f}" if flops else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _text(value: str) -> str:
    return html.escape(value)
