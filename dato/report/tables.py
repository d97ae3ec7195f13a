"""What a person sees of a front: a table for the terminal, and pictures."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from dato.front import Front
from dato.metrics.registry import METRICS, shown
from dato.point import Point
from dato.schedule import Schedule

FULL, NOTHING = "█", "·"
# As papers write them.
_LABELS = {
    "clip-score": "CLIP score",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "frechet": "Fréchet distance",
    "fid": "FID",
    "kid": "KID x 1000",
    "image-reward": "ImageReward",
    "pick-score": "PickScore",
}


def label_of(metric: str) -> str:
    """What a quality metric is called on an axis: as papers write it, else by its own name."""
    return _LABELS.get(metric, metric)


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
        values = [_shown(metric, point.metrics.get(metric)) for metric in names]
        share = [f"{mean_ratio(point.schedule):.0%}"] if pruned else []
        count = ["" if point.steps is None else f"{point.steps}"] if steps else []
        speed = [f"{point.speedup:.2f}x", f"{point.latency_ms:.0f}"]
        cells = [*speed, *values, *share, *count, forecast_of(point.schedule)]
        table.add_row(name, *cells, strip(point.schedule), style=style)
    return table


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


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    value = shown(METRICS[metric], value)
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"
