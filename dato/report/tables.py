"""What a person sees of a front: a table for the terminal, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor

from dato.front import Front
from dato.metrics import METRICS, label_of, shown, text_of
from dato.point import Point
from dato.schedule import Schedule
from dato.utils.files import save_figure

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


def forecast_of(schedule: Schedule) -> str:
    """The order of a schedule's forecasts, and the rule where it is not the polynomial: "1", "0-2", "1 aligned"."""
    used = {order for depth, _, order in schedule.entries if depth < schedule.rungs}
    if not any(used):
        return ""
    orders = f"{max(used)}" if len(used) == 1 else f"{min(used)}-{max(used)}"
    return orders if schedule.forecast == "polynomial" else f"{orders} {schedule.forecast}"


def front_table(front: Front) -> Table:
    """The front, its references and stock, fastest first."""
    objective = front.conditions["quality"]
    names = [objective, *(name for name in front.baseline.metrics if name in METRICS and name != objective)]
    pruned = any(any(point.schedule.ratios) for point in front.points)
    rows = list(_rows(front))
    steps = any(point.steps is not None for _, _, point in rows)
    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0))
    table.title, table.title_justify = "The front (★ its knee); dim: what it was compared with", "left"
    table.caption_justify = "left"
    table.caption = (
        f"ms: per image. Depth: {FULL} whole UNet, {NOTHING} nothing, else that many rungs. Order: of the forecasts, "
        "blank for plain reuse. N=3 d=1: every 3rd call whole, the others at depth 1, as DeepCache."
    )
    table.add_column("", no_wrap=True)
    more = [*(["pruned"] if pruned else []), *(["steps"] if steps else []), "order"]
    for column in ("speed-up", "ms", *names, *more):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("depth by call", overflow="fold")
    for style, name, point in rows:
        values = [text_of(metric, point.metrics[metric]) if metric in point.metrics else "" for metric in names]
        share = [f"{mean_ratio(point.schedule):.0%}"] if pruned else []
        count = ["" if point.steps is None else f"{point.steps}"] if steps else []
        speed = [f"{point.speedup:.2f}x", f"{point.latency_ms:.0f}"]
        cells = [*speed, *values, *share, *count, forecast_of(point.schedule)]
        table.add_row(name, *cells, strip(point.schedule), style=style)
    return table


def quality_plot(
    families: Mapping[str, Sequence[Point]], stock: Point, metrics: Sequence[str], path: str | Path
) -> None:
    """Write a PNG: quality against the share of stock's time, one line or cloud for each family of methods.

    Args:
        families: Points by what they are called; the last one is drawn on top.
        stock: The reference, at a share of 1.
        metrics: Names of `METRICS`, one panel each.
        path: Where to.

    Raises:
        DatoError: if the place cannot be written to.
    """
    figure = Figure(figsize=(6.2 * len(metrics), 5), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    markers = "osD^vP*X<>"
    for panel, metric in zip(panels, metrics, strict=True):
        for number, (name, points) in enumerate(families.items()):
            points = sorted(points, key=lambda p: p.latency_ms)
            shares = [point.latency_ms / stock.latency_ms for point in points]
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
        panel.set(xlabel=f"share of stock's time ({stock.steps} steps)", ylabel=label)
    panels[0].legend(fontsize=8)
    save_figure(figure, path)


def speed_chart(rows: Sequence[Mapping[str, Any]], title: str, path: str | Path) -> None:
    """Write a PNG: for each method its speed-up over stock as a bar, and a mark at what its FLOPs allow.

    Args:
        rows: Of `dato.experiments.speed.time_images`, each with its `batch`; one panel for each batch size.
        title: What was measured on what.
        path: Where to.

    Raises:
        DatoError: if the place cannot be written to.
    """
    batches = sorted({row["batch"] for row in rows})
    names = list(dict.fromkeys(row["method"] for row in rows))
    size = 6.5 * len(batches) + 1.5, 0.34 * len(names) + 1.4
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    figure.suptitle(title, fontsize=9)
    for panel, batch in zip(panels, batches, strict=True):
        own = [row for row in rows if row["batch"] == batch]
        places = [names.index(row["method"]) for row in own]
        known = [row["allowed"] is not None for row in own]
        colours = ["tab:blue" if is_known else "tab:grey" for is_known in known]
        panel.barh(places, [row["loop_speedup"] for row in own], color=colours, alpha=0.85)
        for row, place in zip(own, places, strict=True):
            end = max(row["loop_speedup"], row["allowed"] or 0)
            label = f"{row['loop_speedup']:.2f}x"
            panel.annotate(label, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=7)
        marks = [(row["allowed"], place) for row, place in zip(own, places, strict=True) if row["allowed"] is not None]
        panel.plot(*zip(*marks, strict=True), "k|", markersize=11, label="what the remaining FLOPs allow")
        panel.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        panel.set(xlabel=f"speed-up of UNet and sampler over stock, batch {batch}")
        panel.grid(axis="x", alpha=0.25)
        panel.margins(x=0.12)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize=7, loc="lower right")
    save_figure(figure, path)


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
    save_figure(figure, path)


def _rows(front: Front) -> Iterator[tuple[str, str, Point]]:
    """(style, name, point), fastest first; a reference that is on the front stands there once."""
    knee, names = front.knee(), {point.schedule: name for name, point in front.references.items()}
    rows = []
    for number, point in enumerate(front.points):
        known = f" ({names[point.schedule]})" if point.schedule in names else ""
        rows.append(("", f"{'★' if point is knee else ' '} {number}{known}", point))
    found = {point.schedule for point in front.points}
    rows += [("dim", name, point) for name, point in front.references.items() if point.schedule not in found]
    rows.append(("dim", "stock", front.baseline))
    yield from sorted(rows, key=lambda row: row[2].latency_ms)
