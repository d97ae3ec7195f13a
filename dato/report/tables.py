"""Tables of points: a front for the terminal, and rows of text for any table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dato.front import Front
from dato.point import Point
from dato.report.columns import PLAIN_STEPS, PLAIN_STEPS_MEANING, SPREAD, columns_of, metrics_of
from dato.report.schedule_text import FULL, NOTHING, strip


@dataclass(frozen=True)
class _Line:
    """A line of a table that gives way to its neighbours: a narrow terminal shows its beginning."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = Text(self.text)
        line.truncate(options.max_width, overflow="ellipsis")
        yield line


def front_table(front: Front) -> Table:
    """Return a table of the front, its references and stock, fastest first."""
    rows = list(_rows(front))
    columns = columns_of([point for _, _, point in rows], front.baseline, metrics_of(front))
    columns = [column for column in columns if column.heading != SPREAD]  # there is no room for all
    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0))
    table.title, table.title_justify = "The front (★ its knee); dim: what it was compared with", "left"
    table.caption_justify = "left"
    table.caption = (
        f"ms: per image. Depth: {FULL} whole UNet, {NOTHING} nothing, else that many rungs. Order: of the forecasts, "
        "blank for plain reuse. N=3 d=1: every 3rd call whole, the others at depth 1, as DeepCache."
    )
    if any(column.heading == PLAIN_STEPS for column in columns):
        table.caption += f" {PLAIN_STEPS_MEANING}"
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    table.add_column("depth by call")
    for style, name, point in rows:
        table.add_row(name, *(column.text(point) for column in columns), _Line(strip(point.schedule)), style=style)
    return table


def rows_of(
    points: Mapping[str, Point], stock: Point, metrics: list[str], plain_by: str | None = None
) -> list[dict[str, str]]:
    """Return points by name as rows of text, {heading: text}, fastest first.

    Args:
        points: Name -> point.
        stock: The point that they are compared with.
        metrics: Names of the quality metrics to show.
        plain_by: As in `columns_of`.
    """
    columns = columns_of(list(points.values()), stock, metrics, plain_by)
    return [
        {"method": name}
        | {column.heading: column.text(point) for column in columns}
        | {"depth by call": strip(point.schedule)}
        for name, point in sorted(points.items(), key=lambda item: item[1].latency_ms)
    ]


def _rows(front: Front) -> Iterator[tuple[str, str, Point]]:
    """Yield (style, name, point), fastest first. A reference that is on the front appears once, as a point."""
    knee, names = front.knee(), {point.schedule: name for name, point in front.references.items()}
    rows = []
    for number, point in enumerate(front.points):
        reference = f" ({names[point.schedule]})" if point.schedule in names else ""
        rows.append(("", f"{'★' if point is knee else ' '} {number}{reference}", point))
    on_front = {point.schedule for point in front.points}
    rows += [("dim", name, point) for name, point in front.references.items() if point.schedule not in on_front]
    rows.append(("dim", "stock", front.baseline))
    yield from sorted(rows, key=lambda row: row[2].latency_ms)
