"""What a person sees of a front: a table for the terminal, and pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor

from dato.files import write_atomic
from dato.front import Front, Point
from dato.quality import METRICS, shown
from dato.schedule import Schedule

FULL, NOTHING = "█", "·"


def strip(schedule: Schedule) -> str:
    """The depths as one character a call: █ the whole UNet, · nothing, else the depth (in base 36)."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(
        FULL if depth == schedule.rungs else NOTHING if depth == 0 else digits[depth] for depth in schedule.depths
    )


def mean_ratio(schedule: Schedule) -> float:
    """The mean prune ratio of the calls that run anything."""
    running = [ratio for depth, ratio, _ in schedule.entries if depth]
    return sum(running) / len(running)


def front_table(front: Front) -> Table:
    """The front, its references and stock, fastest first."""
    objective = front.conditions["quality"]
    names = [objective, *(name for name in front.baseline.metrics if name in METRICS and name != objective)]
    pruned = any(any(point.schedule.ratios) for point in front.points)
    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0))
    table.title, table.title_justify = "The front (★ its knee), and uniform schedules and stock beside it", "left"
    table.caption_justify = "left"
    table.caption = (
        f"ms: per image. Depth: {FULL} whole UNet, {NOTHING} nothing, else that many rungs. "
        "N=3 d=1: every 3rd call whole, the others at depth 1, as DeepCache."
    )
    table.add_column("", no_wrap=True)
    for column in ("speed-up", "ms", *names, *(["pruned"] if pruned else [])):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("depth by call", overflow="fold")
    for style, name, point in _rows(front):
        values = [_shown(metric, point.metrics.get(metric)) for metric in names]
        share = [f"{mean_ratio(point.schedule):.0%}"] if pruned else []
        speed = [f"{point.speedup:.2f}x", f"{point.latency_ms:.0f}"]
        table.add_row(name, *speed, *values, *share, strip(point.schedule), style=style)
    return table


def image_grid(rows: Mapping[str, Tensor], prompts: Sequence[str], path: str | Path) -> None:
    """Write a PNG with one labelled row of images (n, 3, H, W) in [0, 1] for each name, a column for each prompt.

    Raises:
        DatoError: if the place cannot be written to.
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
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    write_atomic(path, data.getvalue())


def _rows(front: Front) -> Iterator[tuple[str, str, Point]]:
    knee = front.knee()
    for number, point in enumerate(front.points):
        yield "", f"{'★' if point is knee else ' '} {number}", point
    for name, point in sorted(front.references.items(), key=lambda item: item[1].latency_ms):
        yield "dim", name, point
    yield "dim", "stock", front.baseline


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    value = shown(METRICS[metric], value)
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"
