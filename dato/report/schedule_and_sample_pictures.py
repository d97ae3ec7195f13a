"""Pictures as PNG files: the schedules of a front, and images side by side. Readable without colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dato.errors import DatoError
from dato.front import Front
from dato.point import Point
from dato.search.run_folder import Run
from dato.utils.files import save_figure


def schedules_picture(front: Front, path: str | Path) -> None:
    """Write a PNG: a row for each point of the front, slowest at the top, with a cell for each call.

    The label of the x axis explains the marks.

    Raises:
        DatoError: if the file cannot be written.
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
            # The shallowest call must stand out from the paper, and the deepest shallow call from a whole one.
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
        DatoError: if the run has no samples of its front, one is no image, or the file cannot be written.
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
    prompts = run.sample_prompts[:count]
    prompts += [""] * (count - len(prompts))
    image_grid({name: images[:count] for name, images in rows.items()}, prompts, path)


def _images(run: Run, point: Point) -> Tensor:
    """A strip cut into its images, (n, 3, H, W) in [0, 1]."""
    strip = run.strip(point.schedule)
    assert strip is not None
    pixels = torch.from_numpy(np.array(strip.convert("RGB"))).permute(2, 0, 1) / 255
    return torch.stack(torch.tensor_split(pixels, run.images_in(strip), dim=2))


def image_grid(rows: Mapping[str, Tensor], prompts: Sequence[str], path: str | Path) -> None:
    """Write a PNG with one labelled row of images (n, 3, H, W) in [0, 1] for each name, a column for each prompt.

    Raises:
        DatoError: if the file cannot be written.
    """
    figure = Figure(figsize=(1.3 * len(prompts) + 1.2, 1.3 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), len(prompts), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, prompt in zip(axes[0], prompts, strict=True):
        axis.set_title(fill(prompt, 16), fontsize=7)
    save_figure(figure, path)
