"""What a person sees of a front: a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from dato.front import Front, Point
from dato.quality import METRICS
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
    value = -value if METRICS[metric].lower_is_better else value  # type: ignore[attr-defined]
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"
