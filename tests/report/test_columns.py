"""Tables: one list of columns for all of them, and no heavy imports."""

import io
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import FRONT_FILE
from rich.console import Console

import dato
from dato.plain_steps import PlainSteps
from dato.report.columns import columns_of, metrics_of, plain_texts
from dato.report.page_data import page_data
from dato.report.tables import front_table, rows_of
from dato.search.run_folder import Run

FRONT = dato.load_front(FRONT_FILE)


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
    points = [*front.points, *front.references.values(), front.baseline]
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


def test_plain_steps_are_in_every_table():
    point, plain = FRONT.pick(speedup=7), FRONT.plain_steps(FRONT.pick(speedup=7))
    cell = f"{plain.steps:.0f} ({plain.speedup:.1f}x)"
    assert cell == "16 (2.6x)"
    text = printed(front_table(FRONT))
    assert cell in text and " <5  " in text and ">40 (>2.3x)" in text and "Plain steps: how many" in text
    run = page_data([Run("run", FRONT)])["runs"][0]
    shown = run["points"][FRONT.points.index(point)]
    assert dict(zip(run["columns"], shown["cells"], strict=True))["plain steps"] == cell
    assert shown["plain"] == ("16", "2.6x") and run["points"][0]["plain"] == ("<5", "")
    # Uniform schedules have them too, plain steps none of themselves.
    cells = {p["label"]: p["cells"][run["columns"].index("plain steps")] for p in [*run["references"], run["stock"]]}
    assert cells["N=5 d=0"] == "16 (1.7x)" and cells["20 steps"] == cells["Stock"] == ""
    tomesd = replace(FRONT.baseline, quality=30.0, speedup=1.1)  # whole calls, but not the unchanged pipeline
    points = {"ours": point, **FRONT.references, "ToMeSD": tomesd, "stock": FRONT.baseline}
    rows = {row["method"]: row for row in rows_of(points, FRONT.baseline, ["psnr"])}
    assert rows["ours"]["plain steps"] == cell and rows["20 steps"]["plain steps"] == rows["stock"]["plain steps"] == ""
    assert rows["ToMeSD"]["plain steps"] == "7 (0.2x)"


@pytest.mark.parametrize(
    ("plain", "texts"),
    [
        (PlainSteps(14.4, 2.13), ("14", "2.1x")),
        (PlainSteps(40, 1.24, ">"), (">40", ">1.2x")),
        (PlainSteps(40, 0.8, ">"), (">40", "")),  # it may be faster or slower
        (PlainSteps(5, 0.84, "<"), ("<5", "<0.8x")),
        (PlainSteps(5, 4.3, "<"), ("<5", "")),
        (PlainSteps(20, 0.5), ("20", "0.5x")),
        (None, None),
    ],
)
def test_bounds_are_shown_if_they_say_something(plain, texts):
    assert plain_texts(plain) == texts


def test_plain_steps_by_another_metric_say_so():
    points = {"ours": FRONT.pick(speedup=7), **FRONT.references, "stock": FRONT.baseline}
    first = rows_of(points, FRONT.baseline, ["psnr", "ssim"], "psnr")[0]
    assert "plain steps" in first
    other = {row["method"]: row for row in rows_of(points, FRONT.baseline, ["psnr", "ssim"], "ssim")}
    assert "plain steps" not in other["ours"]
    ssim = FRONT.pick(speedup=7).metrics["ssim"]
    assert FRONT.references["15 steps"].metrics["ssim"] < ssim < FRONT.references["18 steps"].metrics["ssim"]
    assert 15 <= int(other["ours"]["plain steps by ssim"].split()[0]) <= 18


def test_without_plain_steps_to_compare_with_there_is_a_dash_or_no_column():
    front = dato.load_front("emoji-sd-plms20-depth")
    assert "plain steps" not in headings(front) and "Plain steps" not in printed(front_table(front))
    assert page_data([Run("run", front)])["runs"][0]["points"][0]["plain"] is None
    # One point has another sampler than the references.
    other = replace(FRONT, points=(replace(FRONT.points[9], scheduler="euler"), *FRONT.points[10:]))
    rows = rows_of(
        {f"{i}": p for i, p in enumerate(other.points)} | dict(other.references), other.baseline, metrics_of(other)
    )
    cells = {row["method"]: row["plain steps"] for row in rows}
    assert cells["0"] == "–" and cells["1"] == "17 (2.4x)"


def test_what_an_evaluation_adds():
    point = replace(FRONT.knee(), metrics={"psnr": 40.0, "said_psnr": 43.25, "flop_share": 0.1234})
    [row] = rows_of({"ours": point}, FRONT.baseline, ["psnr", "ssim"])
    assert row["FLOPs"] == "12.3%" and row["PSNR (dB)"] == "40.00" and row["said (psnr)"] == "43.25"
    distance = replace(point, metrics={"frechet": -4.0, "said_frechet": -3.0})
    [row] = rows_of({"ours": distance}, FRONT.baseline, ["frechet"])
    assert row["Fréchet distance"] == "4.00" and row["said (frechet)"] == "3.00" and "FLOPs" not in row


@pytest.mark.parametrize("module", ["dato.report.tables", "dato.report.page", "dato.cli.report"])
def test_tables_and_the_page_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*(n for n in ('torch', 'diffusers', 'matplotlib') if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
