"""Tables: one list of columns for all of them, and no heavy imports."""

import io
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

import dato
from dato.report.columns import columns_of, metrics_of
from dato.report.page_data import page_data
from dato.report.tables import front_table, rows_of
from dato.search.run_folder import Run

FRONT = dato.load_front("emoji-sd-depth")


def with_memory(front):
    """The front as if the memory of its knee and of stock had been measured."""
    points = tuple(
        replace(p, metrics={**p.metrics, "peak_mb": 4321.0}) if p is front.knee() else p for p in front.points
    )
    baseline = replace(front.baseline, metrics={**front.baseline.metrics, "peak_mb": 10802.5})
    return replace(front, points=points, baseline=baseline)


def printed(table) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    return text.getvalue()


def headings(front):
    points = [*front.points, front.baseline]
    return [column.heading for column in columns_of(points, front.baseline, metrics_of(front))]


def test_columns_that_say_nothing_are_left_out():
    assert headings(FRONT)[:3] == ["speed-up", "ms", "PSNR (dB)"] and "pruned" not in headings(FRONT)
    assert "pruned" in headings(dato.load_front("emoji-sd-plms20-ratio"))


def test_a_column_is_in_every_table():
    front = with_memory(FRONT)
    assert headings(front)[2:4] == ["MB", "compression"]
    for text in ("MB", "compression", " 4321 ", "2.50x"):
        assert text in printed(front_table(front)) and text not in printed(front_table(FRONT))
    run = page_data([Run("run", front)])["runs"][0]
    assert run["columns"] == headings(front)
    number = front.points.index(front.knee())
    cells = dict(zip(run["columns"], run["points"][number]["cells"], strict=True))
    assert cells["MB"] == "4321" and cells["compression"] == "2.50x"
    assert dict(zip(run["columns"], run["points"][number + 1]["cells"], strict=True))["MB"] == ""
    rows = rows_of({"knee": front.knee(), "stock": front.baseline}, front.baseline, metrics_of(front))
    assert [row["method"] for row in rows] == ["knee", "stock"] and rows[0]["MB"] == "4321" and rows[1]["MB"] == "10802"


@pytest.mark.parametrize("module", ["dato.report.tables", "dato.report.page", "dato.cli.report"])
def test_tables_and_the_page_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*(n for n in ('torch', 'diffusers', 'matplotlib') if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
