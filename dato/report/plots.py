"""Charts as PNG files: fronts, curves of searches, quality of methods, bars of speed. Readable without colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dato.errors import DatoError
from dato.evaluation.baselines import OTHER_FAMILY, STOCK_FAMILY, UNIFORM_FAMILY, family_of
from dato.metrics import METRICS, label_of, shown
from dato.point import Point
from dato.report.columns import FLOPS
from dato.search.run_folder import Run
from dato.utils.files import save_figure

# Runs differ in marker, line and colour. Each of these alone tells them apart.
_MARKERS, _LINES = "osD^Pv", ("-", "--", ":", "-.")
_REFERENCES = {STOCK_FAMILY: "v", UNIFORM_FAMILY: "s", OTHER_FAMILY: "X"}


def front_picture(runs: Sequence[Run], path: str | Path) -> None:
    """Write a PNG: quality against speed-up, the front of each run, and the references of the first run.

    Args:
        runs: All searched with the same quality metric.
        path: The file.

    Raises:
        DatoError: if there is no run, the metrics differ, or the file cannot be written.
    """
    metrics = {run.front.conditions.get("quality", "quality") for run in runs}
    if len(metrics) != 1:
        raise DatoError(f"a picture of fronts needs runs of one quality metric, not {sorted(metrics) or 'none'}")
    metric = metrics.pop()
    sign = shown(metric, 1)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    first = runs[0].front
    on_front = {point.schedule for run in runs for point in run.front.points}
    for family, marker in _REFERENCES.items():
        points = [
            p for p in first.references.values() if family_of(p.schedule) == family and p.schedule not in on_front
        ]
        if points:
            style = {"marker": marker, "s": 26, "facecolors": "none", "edgecolors": "dimgrey", "linewidths": 0.9}
            axes.scatter([p.speedup for p in points], [sign * p.quality for p in points], label=family, **style)
    for number, run in enumerate(runs):
        points = run.front.points
        axes.plot(
            [p.speedup for p in points],
            [sign * p.quality for p in points],
            linestyle=_LINES[number % len(_LINES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.2,
            label=run.name if len(runs) > 1 else "searched",
            zorder=3,
        )
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    values = [p.quality for run in runs for p in run.front.points] + [p.quality for p in first.references.values()]
    stock, spread = first.baseline.quality, max(values) - min(values)
    if min(values) - spread / 2 <= stock <= max(values) + spread / 2:
        axes.plot([1], [sign * stock], "k*", markersize=10, label="stock", linestyle="")
    else:
        # Fidelity of stock to itself is 100 dB. An axis up to there would squeeze the front.
        text = {"xy": (1, 1), "xycoords": ("data", "axes fraction"), "xytext": (4, -10), "textcoords": "offset points"}
        axes.annotate(f"stock: {sign * stock:g} ↑", fontsize=8, color="dimgrey", **text)
    if sign < 0:
        axes.invert_yaxis()
    ticks = [0.5, 1, 2, 3, 5, 7, 10, 20, 30, 50]
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    shown_ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown_ticks, [f"{tick:g}x" for tick in shown_ticks])
    axes.minorticks_off()
    axes.set_xlim(low, high)
    axes.grid(alpha=0.25)
    axes.set(xlabel="speed-up over stock", ylabel=label_of(metric) + (", lower is better" if sign < 0 else ""))
    axes.legend(fontsize=8)
    save_figure(figure, path, dpi=200)


def curves_picture(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], across: str, up: str, path: str | Path
) -> None:
    """Write a PNG of curves. The runs of one name are thin lines with the same dashes.

    Args:
        curves: Name -> runs -> (x, y).
        across: Label of the x axis, which is logarithmic.
        up: Label of the y axis.
        path: The file.

    Raises:
        DatoError: if the file cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(curves.items()):
        style = {"linestyle": _LINES[number % len(_LINES)], "color": f"C{number}", "linewidth": 1.1, "alpha": 0.8}
        for i, run in enumerate(runs):
            axes.plot(*zip(*run, strict=True), label=name if i == 0 else None, **style)
            axes.plot(*run[-1], marker=_MARKERS[number % len(_MARKERS)], color=f"C{number}", markersize=4)
    axes.set(xlabel=across, ylabel=up, xscale="log")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    save_figure(figure, path, dpi=200)


def quality_plot(
    families: Mapping[str, Sequence[Point]],
    stock: Point,
    metrics: Sequence[str],
    path: str | Path,
    flops: bool = False,
) -> None:
    """Write a PNG: quality against the share of stock's time or FLOPs, one line or cloud for each family of methods.

    Args:
        families: Name of a family -> points. The last one is drawn on top.
        stock: The reference, at a share of 1.
        metrics: Names of `METRICS`, one panel each.
        path: The file.
        flops: Take FLOPs (`metrics["flop_share"]`) instead of the time. Points without them are left out.

    Raises:
        DatoError: if the file cannot be written.
    """

    def share_of(point: Point) -> float | None:
        return point.metrics.get(FLOPS) if flops else point.latency_ms / stock.latency_ms

    figure = Figure(figsize=(6.2 * len(metrics), 5), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    markers = "osD^vP*X<>"
    for panel, metric in zip(panels, metrics, strict=True):
        for number, (name, points) in enumerate(families.items()):
            points = sorted((point for point in points if share_of(point) is not None), key=share_of)
            shares = [share_of(point) for point in points]
            values = [shown(metric, point.metrics[metric]) for point in points]
            line = "-" if len(points) > 2 else ""
            panel.plot(
                shares, values, line, marker=markers[number % len(markers)], markersize=5, linewidth=1.2, label=name
            )
        against_stock = METRICS[metric].against_stock
        if not against_stock:
            panel.axhline(shown(metric, stock.metrics[metric]), color="grey", linewidth=0.8, linestyle=":")
        ticks = [0.05, 0.1, 0.2, 0.3, 0.5, 1]
        panel.set_xscale("log")
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.25)
        label = label_of(metric) + (", to stock's image" if against_stock else ", dotted: stock")
        panel.set(xlabel=f"share of stock's {'FLOPs' if flops else 'time'} ({stock.steps} steps)", ylabel=label)
    panels[0].legend(fontsize=8)
    save_figure(figure, path)


def speed_chart(rows: Sequence[Mapping[str, Any]], title: str, path: str | Path) -> None:
    """Write a PNG: a bar for each method's speed-up over stock, and a mark at the speed-up that its FLOPs allow.

    Args:
        rows: As `dato.experiments.speed.time_images` returns, each with its `batch`. One panel for each batch size.
        title: What was measured on what.
        path: The file.

    Raises:
        DatoError: if the file cannot be written.
    """
    batches = sorted({row["batch"] for row in rows})
    names = list(dict.fromkeys(row["method"] for row in rows))
    size = 6.5 * len(batches) + 1.5, 0.34 * len(names) + 1.4
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    figure.suptitle(title, fontsize=9)
    for panel, batch in zip(panels, batches, strict=True):
        batch_rows = [row for row in rows if row["batch"] == batch]
        places = [names.index(row["method"]) for row in batch_rows]
        has_flops = [row["allowed"] is not None for row in batch_rows]
        colours = ["tab:blue" if known else "tab:grey" for known in has_flops]
        panel.barh(places, [row["loop_speedup"] for row in batch_rows], color=colours, alpha=0.85)
        for row, place in zip(batch_rows, places, strict=True):
            end = max(row["loop_speedup"], row["allowed"] or 0)
            label = f"{row['loop_speedup']:.2f}x"
            panel.annotate(label, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=7)
        allowed = [row["allowed"] for row in batch_rows]
        marks = [(mark, place) for mark, place in zip(allowed, places, strict=True) if mark is not None]
        panel.plot(*zip(*marks, strict=True), "k|", markersize=11, label="what the remaining FLOPs allow")
        panel.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        panel.set(xlabel=f"speed-up of UNet and sampler over stock, batch {batch}")
        panel.grid(axis="x", alpha=0.25)
        panel.margins(x=0.12)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize=7, loc="lower right")
    save_figure(figure, path)
