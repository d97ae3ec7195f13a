"""A run's pictures for papers: the front, the schedules on it, and images. Plain PNGs, readable without colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dato.errors import DatoError
from dato.evaluation.baselines import family_of
from dato.front import Front
from dato.metrics import label_of, shown
from dato.point import Point
from dato.report.tables import image_grid
from dato.search.run_record import Run
from dato.utils.files import save_figure

# One of each for every run: shape, line and colour each tell runs apart.
_MARKERS, _LINES = "osD^Pv", ("-", "--", ":", "-.")
_REFERENCES = {"stock, fewer steps": "v", "uniform schedules": "s", "other methods": "X"}


def front_picture(runs: Sequence[Run], path: str | Path) -> None:
    """Write a PNG: quality against speed-up, the front of each run, and what the first one was compared with.

    Args:
        runs: All searched with the same quality metric.
        path: Where to.

    Raises:
        DatoError: if there is no run, the metrics differ, or the place cannot be written to.
    """
    metrics = {run.front.conditions.get("quality", "quality") for run in runs}
    if len(metrics) != 1:
        raise DatoError(f"a picture of fronts needs runs of one quality metric, not {sorted(metrics) or 'none'}")
    metric = metrics.pop()
    sign = shown(metric, 1)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    first = runs[0].front
    found = {point.schedule for run in runs for point in run.front.points}
    for family, marker in _REFERENCES.items():
        points = [p for p in first.references.values() if family_of(p.schedule) == family and p.schedule not in found]
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
        # 100 dB on the axis would squeeze all that matters.
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


def schedules_picture(front: Front, path: str | Path) -> None:
    """Write a PNG: a row for each point of the front, slowest at the top, with a cell for each call.

    The picture says itself what its marks mean.

    Raises:
        DatoError: if the place cannot be written to.
    """
    points = front.points[::-1]
    calls = max(len(point.schedule) for point in points)
    figure = Figure(figsize=(min(14, 2.6 + 0.17 * calls), 0.25 * len(points) + 1.5), layout="constrained")
    axes = figure.subplots()
    grid = np.full((len(points), calls), np.nan)
    forecast = []
    for row, point in enumerate(points):
        for call, (depth, ratio, order) in enumerate(point.schedule.entries):
            whole = depth == point.schedule.rungs
            # The shallowest must still stand out from paper, and the deepest partial call from a whole one.
            grid[row, call] = 1 if whole else 0.18 + 0.5 * depth / point.schedule.rungs if depth else 0.04
            if not whole:
                axes.text(call, row + 0.05, f"{depth or '–'}", fontsize=6, ha="center", va="center", color="black")
            if order and not whole:
                forecast.append((call, row - 0.34))
            if ratio and depth:
                axes.plot([call - 0.4, call - 0.4 + 0.8 * ratio], [row + 0.36] * 2, color="tab:orange", linewidth=2)
    axes.imshow(grid, cmap="Greys", vmin=0, vmax=1.15, aspect="auto", interpolation="none")
    if forecast:
        axes.plot(*zip(*forecast, strict=True), "o", color="tab:blue", markersize=2)
    axes.set_xticks(np.arange(-0.5, calls), minor=True)
    axes.set_yticks(np.arange(-0.5, len(points)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    numbers = len(points) - 1 - np.arange(len(points))
    names = [f"{number}   {point.speedup:5.2f}x" for number, point in zip(numbers, points, strict=True)]
    axes.set_yticks(range(len(points)), names, fontsize=8)
    axes.set_xticks([call for call in range(calls) if call == 0 or (call + 1) % 5 == 0])
    axes.set_xticklabels([f"{int(tick) + 1}" for tick in axes.get_xticks()], fontsize=8)
    marks = ["black: the whole UNet", "number: the depth", "–: nothing runs"]
    marks += ["dot: what is cached is forecast"] if forecast else []
    marks += ["bar: the share of tokens left out"] if any(any(point.schedule.ratios) for point in points) else []
    axes.set_xlabel(fill(f"call of the UNet; {'; '.join(marks)}", max(40, 3 * calls)), fontsize=8)
    save_figure(figure, path, dpi=200)


def samples_picture(run: Run, path: str | Path, most: int = 5) -> None:
    """Write a PNG: stock's images, and below them those of up to `most` points of the front, slowest first.

    Raises:
        DatoError: if the run has no samples of its front, one is no image, or the place cannot be written to.
    """
    kept = [(number, p) for number, p in enumerate(run.front.points) if p.schedule in run.samples][::-1]
    if not kept:
        raise DatoError(f"run {run.name}: no sample images of its front were kept")
    spread = np.linspace(0, len(kept) - 1, min(most, len(kept))).round().astype(int)
    rows: dict[str, Tensor] = {}
    if run.front.baseline.schedule in run.samples:
        rows["stock"] = _images(run, run.front.baseline)
    for number, point in (kept[i] for i in dict.fromkeys(spread.tolist())):
        rows[f"{number}: {point.speedup:.2f}x"] = _images(run, point)
    count = min(len(images) for images in rows.values())
    prompts = [str(prompt) for prompt in run.front.conditions.get("prompts", [])][:count]
    prompts += [""] * (count - len(prompts))
    image_grid({name: images[:count] for name, images in rows.items()}, prompts, path)


def _images(run: Run, point: Point) -> Tensor:
    """A strip cut into its images, (n, 3, H, W) in [0, 1]."""
    strip = run.strip(point.schedule)
    assert strip is not None
    pixels = torch.from_numpy(np.array(strip.convert("RGB"))).permute(2, 0, 1) / 255
    return torch.stack(torch.tensor_split(pixels, run.images_in(strip), dim=2))


def curves_picture(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], across: str, up: str, path: str | Path
) -> None:
    """Write a PNG of curves, several runs of each name as thin lines, each name with a dash of its own.

    Args:
        curves: Name -> runs -> (x, y).
        across: What x is; its axis is logarithmic.
        up: What y is.
        path: Where to.

    Raises:
        DatoError: if the place cannot be written to.
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
