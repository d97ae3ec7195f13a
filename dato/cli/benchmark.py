"""The command `benchmark`: measure speed beside stock and other packages; tables, JSON and a bar chart."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato.cli import options as opt
from dato.cli.console import err, out, quiet_libraries, show_progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.experiments.benchmark_parts import PARTS
from dato.pruning import Pruning
from dato.strategies import load_strategy
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import hardware

if TYPE_CHECKING:
    import torch

    from dato.experiments.benchmark import BenchmarkSettings, Result


def run_benchmark(
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    variant: opt.Variant = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help=f"What to measure: {', '.join(PARTS)} ({'; '.join(PARTS.values())}).",
            show_default="all; with --compile without table",
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Run stock and our schedules with torch.compile; the others stay eager.")
    ] = False,
    compile_mode: Annotated[
        str | None, typer.Option(help="torch.compile's mode, as reduce-overhead.", show_default="its default")
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Also run these fronts and schedules, with commas between them; of a front, its knee and fastest "
            "point.",
            show_default="emoji-sd: emoji-sd-depth",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="The methods of the part images, as in 'N=5 d=0; pruned 50%'. Stock always runs.", show_default="all"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Sampler steps.")] = 50,
    scheduler: Annotated[
        str | None, typer.Option(help="Sampler.", show_default="the model's own; emoji-sd: dpm++2m")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(min=1, help="Classifier-free guidance; 1 is off.")] = 3.0,
    height: opt.Height = None,
    width: opt.Width = None,
    batch_size: Annotated[str, typer.Option("--batch-size", help="Images per generation, as in 1,4.")] = "1",
    rounds: Annotated[
        int, typer.Option(min=1, help="How often to measure everything, in turn; the median counts.")
    ] = 5,
    depths: Annotated[str | None, typer.Option(help="Depths of the calls, as in 1,3,12.", show_default="all")] = None,
    ratios: Annotated[str, typer.Option(help="Prune ratios of the calls.")] = "0,0.3,0.5,0.7",
    similarity: Annotated[str, typer.Option(help="How our pruning compares tokens: global or local.")] = "global",
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in one more generation for each method.")] = True,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file.", show_default="benchmarks/<hardware>-<model>-<mode>-<date>.json"),
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Write the bar chart of the methods to this PNG.")] = None,
) -> None:
    """Measure speed: stock, ToMeSD, DeepCache and dato, side by side in one process.

    Without options it measures the embedded model. sd15-random, sd21-random and sdxl-random are the published
    configurations with random weights, because time does not depend on weights.
    """
    from dato.experiments.benchmark import BenchmarkSettings
    from dato.generation.sampling import Sampling

    quiet_libraries()
    chosen = tuple(parts.split(",")) if parts else tuple(part for part in PARTS if part != "table" or not compile)
    if chart is not None and "images" not in chosen:
        raise DatoError("--chart shows the methods: it needs --parts images")
    where = opt.device_of(device)
    names = (strategies or ("emoji-sd-depth" if model == EMBEDDED else "")).split(",")
    settings = BenchmarkSettings(
        model,
        config,
        variant,
        chosen,
        compile,
        compile_mode,
        {name: load_strategy(name) for name in names if name},
        None if methods is None else tuple(name.strip() for name in methods.split(";")),
        Sampling(steps, guidance_scale, height, width),
        scheduler,
        _batch_sizes(batch_size),
        rounds,
        tuple(opt.numbers("--depths", depths, int) or ()) or None,
        tuple(opt.numbers("--ratios", ratios, float)),
        Pruning(similarity=similarity),
        memory,
        where,
        opt.dtype_of(dtype, where),
    )
    data = _measure(settings, out_file or Path("benchmarks") / _file_name(where, model, compile))
    if chart is not None:
        from dato.report.plots import speed_chart

        speed_chart(data["images"], f"{model}, {data['conditions']['hardware']}", chart)


def _batch_sizes(text: str) -> tuple[int, ...]:
    """Return the numbers of --batch-size. Raises DatoError if one is below 1."""
    sizes = opt.whole_numbers("--batch-size", text)
    if min(sizes) < 1:
        raise DatoError(f"--batch-size {text!r}: the numbers must be at least 1")
    return sizes


def _measure(settings: BenchmarkSettings, path: Path) -> dict[str, Any]:
    """Run the benchmark, print the tables, and write the numbers to a file. Return what the file holds."""
    from dato.experiments.benchmark import benchmark, missing_packages

    if missing := missing_packages():
        err.print(f"Not installed, so left out: {', '.join(missing)} (pip install -e '.\\[bench]')")
    called = {
        "command": shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
    }
    data = {"format": "dato.benchmark", "version": 1, "conditions": called | settings.conditions()}
    for result in benchmark(settings, show_progress):
        data.setdefault(result.part, []).extend(result.rows)
        write_atomic(path, dumps(data))  # after every part, so nothing is lost if a later part fails
        _print(result)
    out.print(f"{hardware(settings.device)}; written to {path}", highlight=False, soft_wrap=True, markup=False)
    return data


# Column title, key of the row, format.
_SPEEDS = [
    ("speed-up", "speedup", "{:.2f}x"),
    ("FLOPs allow", "allowed", "{:.2f}x"),
    ("efficiency", "efficiency", "{:.2f}"),
]
# Part -> title of its table, columns.
_TABLES = {
    "calls": (
        "One UNet call",
        [
            ("", "method", "{}"),
            ("depth", "depth", "{}"),
            ("ratio", "ratio", "{:g}"),
            ("ms", "call_ms", "{:.2f}"),
            *_SPEEDS,
        ],
    ),
    "images": (
        "Per image",
        [
            ("", "method", "{}"),
            ("steps", "steps", "{}"),
            ("ms", "image_ms", "{:.1f}"),
            ("speed-up", "speedup", "{:.2f}x"),
            ("loop ms", "loop_ms", "{:.1f}"),
            ("loop speed-up", "loop_speedup", "{:.2f}x"),
            *_SPEEDS[1:],
            ("peak MB", "peak_mb", "{:.0f}"),
        ],
    ),
    "control": (
        "A call's mean of ten, with a ControlNet and without",
        [("", "method", "{}"), ("ms", "call_ms", "{:.1f}"), ("speed-up", "speedup", "{:.2f}x")],
    ),
    "selection": (
        "Choosing the tokens of one call, ratio 0.5",
        [
            ("", "method", "{}"),
            ("batch", "batch", "{}"),
            ("ms", "select_ms", "{:.3f}"),
            ("speed-up", "speedup", "{:.1f}x"),
            ("extra MB", "peak_mb", "{:.1f}"),
            ("of plain's", "memory_share", "{:.3f}"),
        ],
    ),
}


def _print(result: Result) -> None:
    """Print the table of one part, or the summary of the latency table's check."""
    if result.check is not None:
        out.print(f"{result.check}", highlight=False, soft_wrap=True)
        return
    title, columns = _TABLES[result.part]
    out.print(_table(title if result.batch is None else f"{title}, batch {result.batch}", result.rows, columns))


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0))
    for heading, key, _ in columns:
        table.add_column(heading, justify="left" if key == "method" else "right", no_wrap=True)
    for row in rows:
        cells = [(form, row.get(key)) for _, key, form in columns]
        table.add_row(*("" if value is None else form.format(value) for form, value in cells))
    return table


def _file_name(device: torch.device, model: str, compile: bool) -> str:
    """Return the default name of the JSON file: <hardware>-<model>-<mode>-<date>.json."""
    name = hardware(device).split(",")[0]
    words = [name, Path(model).name, "compiled" if compile else "eager", date.today().isoformat()]
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words) + ".json"
