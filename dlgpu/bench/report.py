"""Results as people read them: lines of a table, Markdown, a roofline and bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlgpu.bench.cases import Case
from dlgpu.bench.goals import GOALS
from dlgpu.bench.measure import Ceilings
from dlgpu.bench.run import Results
from dlgpu.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
# Okabe-Ito colours; the markers survive a grey print
STYLE = {
    "float32": ("#0072B2", "o"),
    "tf32": ("#CC79A7", "D"),
    "float32x3": ("#56B4E9", "v"),
    "float16": ("#E69F00", "s"),
    "bfloat16": ("#009E73", "^"),
}
OURS, THEIRS = "#0072B2", "#D55E00"
MOST_BARS = 40


@dataclass(frozen=True)
class Line:
    """One of our contestants on one case, with the best baseline beside it. Figures are None where there is no time.

    `cached`: the input sets are too small to leave the cache.
    """

    case: Row
    ours: Row
    baseline: Row | None
    floor_us: float | None
    cached: bool = False

    @property
    def ratio(self) -> float | None:
        """Best baseline's time over ours: above 1 we are faster. None for an emulated GPU."""
        if self.baseline is None or "us" not in self.ours or self.emulated:
            return None
        return self.baseline["us"] / self.ours["us"]

    @property
    def emulated(self) -> bool:
        """The time is that of an emulation on a CPU."""
        return self.ours.get("how") == "emulated"

    @property
    def roofline(self) -> float | None:
        """Share of the measured roofline."""
        return self.floor_us / self.ours["us"] if self.floor_us and "us" in self.ours else None


def lines(row: Row, ceilings: Ceilings | None) -> Iterator[Line]:
    """The lines of one row of results: one for each contestant of ours."""
    case, results = row["case"], row.get("results")
    if results is None:  # the whole case failed
        yield Line(case, {"by": "-", "state": row["state"], "reason": row["reason"]}, None, None)
        return
    timed = [r for r in results if not r["ours"] and "us" in r]
    best = min(timed, key=lambda r: r["us"]) if timed else None
    floor = _floor_us(row, ceilings)
    for result in results:
        if result["ours"]:
            yield Line(case, result, best, floor, row["cached"])


def _floor_us(row: Row, ceilings: Ceilings | None) -> float | None:
    case = row["case"]
    return ceilings.floor_us(case["flops"], case["bytes"], case["dtype"]) if ceilings else None


def ceilings(results: Results) -> Ceilings | None:
    """What the machine could do, if it was measured."""
    kept = results.machine.get("ceilings")
    return Ceilings(**kept) if kept else None


# --- text -------------------------------------------------------------------------------------------------------------


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    value = float(f"{value:.3g}")
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def microseconds(us: float) -> str:
    """Three digits with a unit: "8.12 µs", "812 µs", "8.12 ms", "8.12 s"."""
    unit, size = next(((u, s) for u, s in (("µs", 1.0), ("ms", 1e3)) if us / s < 999.5), ("s", 1e6))
    return f"{_digits(us / size)} {unit}"


def rate(result: Row, case: Row) -> str:
    """FLOP/s where the case counts FLOPs, else bytes per second."""
    value, unit = (result["gflops"], "FLOP/s") if case["flops"] else (result["gbs"], "B/s")
    prefix, size = ("T", 1e3) if value >= 999.5 else ("G", 1.0)
    return f"{_digits(value / size)} {prefix}{unit}"


HEAD = ("case", "by", "time", "±", "rate", "roofline", "best baseline", "ratio")


def cells(line: Line) -> tuple[str, ...]:
    """A line as text, one cell per entry of `HEAD`."""
    ours = line.ours
    best = f"{microseconds(line.baseline['us'])} {line.baseline['by']}" if line.baseline else "-"
    if "us" not in ours:
        verdict = f"{ours['state']}: {ours['reason']}" if ours["state"] != "ok" else "right; not timed"
        return line.case["id"], ours["by"], verdict, "", "", "", best, ""
    return (
        line.case["id"],
        ours["by"],
        microseconds(ours["us"]),
        f"{ours['spread']:.0%}",
        f"{len(ours['launches'])} launches" if line.emulated else rate(ours, line.case),
        (f"{line.roofline:.0%}" if line.roofline else "-") + "*" * line.cached,
        best,
        f"{line.ratio:.2f}x" if line.ratio else "-",
    )


WIDTHS = (56, 12, 9, 4, 13, 8, 30, 7)


def line_of(texts: Sequence[str]) -> str:
    """Cells in columns, for the terminal: names and reasons to the left, figures to the right."""
    if not texts[3]:  # a reason: it takes the room of the figures
        return f"{texts[0]:<{WIDTHS[0]}} {texts[1]:<{WIDTHS[1]}} {texts[2]}"
    left = (0, 1, 6)
    padded = (f"{t:<{w}}" if i in left else f"{t:>{w}}" for i, (t, w) in enumerate(zip(texts, WIDTHS, strict=True)))
    return " ".join(padded).rstrip()


def headline(machine: Row) -> str:
    """One or two lines about the machine and what is not there."""
    where = (
        "CPU EMULATING a GPU: times say nothing about one"
        if machine["device"] == "host-kernels"
        else machine["backend"]
    )
    about = f"{machine['name']} ({where}), dlgpu {machine['dlgpu']} {machine['commit']}"
    extra = [f"{name} {machine[name]}" for name in ("numpy", "cupy", "torch", "cudnn") if machine.get(name)]
    return f"{about}, Python {machine['python']}, {', '.join(extra)}"


def _ceiling_text(known: Ceilings | None) -> str:
    if known is None:
        return "not measured"
    products = ", ".join(f"{dtype} {gflops / 1e3:.3g} TFLOP/s" for dtype, gflops in known.gflops.items())
    return f"copy {known.copy_gbs:.4g} GB/s (read plus written); products {products or '-'}"


def markdown(results: Results) -> str:
    """The whole report."""
    machine, known = results.machine, ceilings(results)
    text = [f"# {machine['name']}", "", headline(machine) + ".", ""]
    text += [f"- Measured ceilings: {_ceiling_text(known)}."]
    text += [f"- {name}: {reason}" for name, reason in machine["missing"].items()]
    text += [f"- {machine['gpu']}"] if machine.get("gpu") else []
    text += [
        f"- {len(results.rows)} cases measured"
        + (f", {results.left} more left for lack of time" if results.left else "")
        + ". How, and what the columns mean: docs/benchmarks.md. *: its arrays stay in the cache.",
        "",
    ]
    if results.wrong:
        text += ["## Wrong or failed", "", *(f"- {line}" for line in results.wrong), ""]
    every = [line for row in results.rows for line in lines(row, known)]
    text += _goals(results) if machine["device"] == "cuda" else []
    text += _summary(every)
    for op in dict.fromkeys(line.case["op"] for line in every):
        text += [f"## {op}", "", _row((*HEAD, "launches", "CPU", "all baselines")), "|---" * 11 + "|"]
        for row in results.rows:
            if row["case"]["op"] == op:
                text += [_row((*cells(line), *_details(line, row))) for line in lines(row, known)]
        text.append("")
    return "\n".join(text)


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _details(line: Line, row: Row) -> tuple[str, str, str]:
    ours = line.ours
    launches = str(len(ours["launches"])) if ours.get("launches") else "-"
    cpu = microseconds(ours["cpu_us"]) if ours.get("cpu_us") else "-"
    others = []
    for result in row.get("results", []):
        if not result["ours"]:
            time = microseconds(result["us"]) if "us" in result else result["state"]
            note = f" ({result['reason']})" if result.get("reason") else ""
            how = f" [{result['how']}]" if result.get("how", ours.get("how")) != ours.get("how") else ""
            others.append(f"{result['by']} {time}{how}{note}")
    how = ours.get("how", "")
    return launches, cpu, "; ".join(others) + (f" — ours by {how}" if how.startswith("events") else "")


def _goals(results: Results) -> list[str]:
    """Each goal beside what was measured: the geometric mean over its cases decides."""
    known = ceilings(results)
    text = ["## Goals", "", "They were set for an H200; the fastest of ours in each case counts. Met: on average.", ""]
    head = ("goal", "against", "ship", "stretch", "cases", "geometric mean", "least", "by", "verdict")
    text += [_row(head), "|---" * len(head) + "|"]
    for goal in GOALS:
        reached = []
        for row in results.rows:
            fields = {name: row["case"][name] for name in ("op", "group", "name", "dtype", "sizes")}
            if goal.takes(Case(**fields)) and (one := goal.reached(row, _floor_us(row, known))):
                reached.append(one)
        values = [value for value, _ in reached]
        mean, least = _geometric_mean(values), min(values, default=None)
        against = " or ".join(goal.against) or "copy bandwidth"
        by = ", ".join(dict.fromkeys(name for _, name in reached)) or "-"
        limits = (goal.shown(value) for value in (goal.ship, goal.stretch))
        got = (str(len(values)), goal.shown(mean), goal.shown(least), by, goal.verdict(mean))
        text.append(_row((goal.text, against, *limits, *got)))
    return [*text, ""]


def _geometric_mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _summary(every: Sequence[Line]) -> list[str]:
    """Per op and precision: how many cases, and the geometric mean of the ratios to the best baseline."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in every:
        groups.setdefault((line.case["op"], line.case["dtype"], line.ours["by"]), []).append(line)
    head = ("op", "precision", "by", "cases", "timed", "ratio, geometric mean", "least", "most", "roofline, median")
    text = ["## Summary", "", "Ratio: the best baseline's time over ours; above 1 we are faster.", ""]
    text += [_row(head), "|---" * len(head) + "|"]
    for (op, dtype, by), group in groups.items():
        ratios = [line.ratio for line in group if line.ratio]
        shares = sorted(line.roofline for line in group if line.roofline and not line.cached)
        values = (_geometric_mean(ratios), min(ratios, default=None), max(ratios, default=None))
        text.append(
            _row(
                (
                    *(op, dtype, by, str(len(group)), str(sum("us" in line.ours for line in group))),
                    *(f"{value:.2f}x" if value else "-" for value in values),
                    f"{shares[len(shares) // 2]:.0%}" if shares else "-",
                )
            )
        )
    return [*text, ""]


# --- pictures ---------------------------------------------------------------------------------------------------------


def roofline(results: Results, path: Path) -> bool:
    """Products and convolutions in a roofline picture; False, and no file, if there is nothing to show."""
    known = ceilings(results)
    every = [[line for line in lines(row, known) if "us" in line.ours] for row in results.rows if row["case"]["flops"]]
    points = [min(of_case, key=lambda line: line.ours["us"]) for of_case in every if of_case]
    if known is None or not points or not any(known.gflops.values()):
        return False
    figure, axes = _figure(8.5, 5.6)
    x = [line.case["flops"] / line.case["bytes"] for line in points]
    ridges = [gflops / known.copy_gbs for gflops in known.gflops.values()]
    left, right = min(*x, *ridges) / 4, max(*x, *ridges) * 4
    used = [dtype for dtype in STYLE if any(line.case["dtype"] == dtype for line in points)]
    for dtype in used:
        color, marker = STYLE[dtype]
        peak = known.gflops.get(dtype)
        if peak:
            ridge = peak / known.copy_gbs
            axes.plot([left, ridge, right], [left * known.copy_gbs, peak, peak], color=color, linewidth=1.2, zorder=1)
        mine = [line for line in points if line.case["dtype"] == dtype]
        for line in mine:
            at = line.case["flops"] / line.case["bytes"]
            axes.plot(at, line.ours["gflops"], marker=marker, color=color, markersize=6, linestyle="", zorder=3)
            if line.baseline:
                theirs = line.baseline["gflops"]
                axes.plot(
                    at, theirs, marker=marker, markerfacecolor="none", markeredgecolor=color, linestyle="", zorder=2
                )
                axes.plot([at, at], [line.ours["gflops"], theirs], color=color, linewidth=0.5, alpha=0.4, zorder=2)
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte)", ylabel="GFLOP/s")
    axes.set_xlim(left, right)
    axes.set_title(
        _title(results, "Filled: our fastest; hollow: the best baseline; lines: measured roofs"), fontsize=11
    )
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=STYLE[dtype][0], marker=STYLE[dtype][1], label=dtype) for dtype in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    _save(figure, path)
    return True


def bars(results: Results, path: Path) -> bool:
    """How much faster than the best baseline (or, without one, which share of the roofline), case by case, for the
    first cases measured; False, and no file, if there is nothing to show."""
    known = ceilings(results)
    every = [line for row in results.rows for line in lines(row, known)]
    shown = [(line, line.ratio) for line in every if line.ratio][:MOST_BARS]
    label, is_ratio = "times as fast as the best baseline (logarithmic)", bool(shown)
    if not is_ratio:
        shown = [(line, line.roofline) for line in every if line.roofline][:MOST_BARS]
        label = "share of the measured roofline"
    if not shown:
        return False
    shown.sort(key=lambda pair: pair[0].case["op"])  # stable: within an op in the order of importance
    figure, axes = _figure(8.5, 1.5 + 0.24 * len(shown))
    values = [value for _, value in shown if value]
    places = range(len(shown))
    if is_ratio:
        colors = [OURS if value >= 1 else THEIRS for value in values]
        axes.barh(places, [value - 1 for value in values], left=1, color=colors, height=0.7)
        axes.set_xscale("log")
        low, high = min(*values, 1), max(*values, 1)
        left, right = min(low / 1.6, 0.5), max(high, 2)
        axes.set_xlim(left, right * (right / left) ** 0.45)  # room for the names
        axes.axvline(1, color="#222222", linewidth=1)
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        wide = high / low > 1e3
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.barh(places, values, color=OURS, height=0.7)
        axes.set_xlim(0, max(*values, 0.1) * 1.12)
    for place, (line, value) in enumerate(shown):
        assert value is not None
        text = f"{value:.2f}x" if is_ratio else f"{value:.0%}"
        axes.annotate(
            f"{text}" + (f"  {line.baseline['by']}" if line.baseline and is_ratio else ""),
            (max(value, 1) if is_ratio else value, place),
            xytext=(4, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=7,
            color="#222222",
            bbox=dict(facecolor="white", edgecolor="none", pad=0.5),
        )
    axes.set_yticks(places, [_name(line) for line, _ in shown], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.set_title(_title(results, ""), fontsize=11)
    axes.grid(axis="y", visible=False)
    _save(figure, path)
    return True


def _name(line: Line) -> str:
    by = "" if line.ours["by"] in ("dlgpu", "numpy") else f" ({line.ours['by']})"
    return line.case["id"] + by


def _title(results: Results, text: str) -> str:
    return f"{results.machine['name']}\n{text}" if text else results.machine["name"]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def write(results: Results) -> list[Path]:
    """report.md, roofline.png and bars.png beside results.json; returns what was written."""
    folder = results.path.parent
    report = folder / "report.md"
    with atomic_file(report) as file:
        file.write((markdown(results).rstrip() + "\n").encode())
    drawn = [
        path for draw, path in ((roofline, folder / "roofline.png"), (bars, folder / "bars.png")) if draw(results, path)
    ]
    return [results.path, report, *drawn]
