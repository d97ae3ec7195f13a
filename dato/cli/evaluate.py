"""`evaluate`: fronts and schedules on prompts that no search has seen, beside stock and uniform schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato import emoji_sd
from dato.cli import options as opt
from dato.console import err, out, progress
from dato.environment import hardware, versions
from dato.errors import DatoError
from dato.evaluation import Evaluator
from dato.files import write_atomic
from dato.front import Front, Point, dumps, load_strategy
from dato.quality import METRICS, Setup, load_metric, shown
from dato.report import image_grid, strip
from dato.sampling import EMBEDDED, SAMPLERS, Sampling, load_pipeline, read_prompts
from dato.search import uniform_references

NAMES = ("clip-score", "frechet", "psnr", "ssim")


def evaluate(
    strategies: Annotated[list[str], typer.Argument(help="Fronts or schedules: JSON files, or names of shipped ones.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a diffusers pipeline.", show_default="the first front's")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt a line.", show_default="the embedded model's evaluation split"),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps.", show_default="the first front's")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help=f"Sampler: {', '.join(SAMPLERS)}.", show_default="the first front's")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, help="Classifier-free guidance; 1 is off.", show_default="the first front's")
    ] = None,
    images: Annotated[int | None, typer.Option(min=2, help="How many prompts.", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Time all of them this often, in turn; the median counts.")] = 5,
    clip: Annotated[str | None, typer.Option(help="CLIP checkpoint.", show_default="the embedded one")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="Statistics of real pictures.", show_default="the embedded ones")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Image i starts from the noise of seed + i.")] = 1000,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the table as JSON, too.")] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Write a PNG, too: the first eight prompts' images by stock and every schedule.")
    ] = None,
) -> None:
    """Evaluate schedules on held-out prompts, beside stock and uniform (DeepCache) schedules.

    Quality is that of all images; the times of all contenders are measured in turn in the same run.
    """
    loaded = {name: load_strategy(name) for name in strategies}
    known: dict[str, Any] = next((s.conditions for s in loaded.values() if isinstance(s, Front)), {})
    model = model or known.get("model", EMBEDDED)
    if model != EMBEDDED and not (prompts and clip and statistics):
        raise DatoError(f"give --prompts, --clip and --statistics for {model}: the built-in ones are {EMBEDDED}'s")
    texts = emoji_sd.prompts("evaluation")[:images] if prompts is None else read_prompts(prompts, images)
    where = opt.device_of(device)
    setup = Setup(clip or emoji_sd.CLIP, statistics or emoji_sd.STATISTICS, where)
    metrics = [load_metric(name, setup) for name in NAMES]
    guidance = guidance_scale or known.get("guidance_scale", 3.0)
    size = known.get("height"), known.get("width")
    sampling = Sampling(steps or known.get("steps", 50), guidance, *size, seed=seed, batch_size=batch_size)
    sampler = scheduler or known.get("scheduler_name")
    with err.status(f"Loading {model}"):
        pipe = load_pipeline(model, device=where, dtype=opt.dtype_of(dtype, where), scheduler=sampler)
        judge = Evaluator(pipe, texts, sampling, metrics)

    contenders = {f"uniform {name}": s for name, s in uniform_references(judge.calls, judge.rungs).items()}
    for name, strategy in loaded.items():
        path = Path(name)
        label = path.parent.name if path.name == "pareto.json" else path.stem
        if isinstance(strategy, Front):
            found = {f"{label} {number}": point.schedule for number, point in enumerate(strategy.points)}
        else:
            found = {label: strategy}
        for title, schedule in found.items():
            if len(schedule) != judge.calls:
                title += f" ({len(schedule)} calls resampled)"
            if title in contenders:
                raise DatoError(f"two strategies are called {label}: rename one of the files")
            contenders[title] = schedule.resampled(judge.calls).for_rungs(judge.rungs)
    unique = list(dict.fromkeys(contenders.values()))
    with progress() as bar:
        task = bar.add_task("Images", total=len(unique))
        for schedule in unique:
            judge(schedule)
            bar.advance(task)
        task = bar.add_task("Timing side by side", total=rounds * (1 + len(unique)))
        stock, timed = judge.retime(unique, rounds, lambda: bar.advance(task))
    by_schedule = dict(zip(unique, timed, strict=True))
    rows = {"stock": stock} | {name: by_schedule[schedule] for name, schedule in contenders.items()}
    _print(rows, len(texts))
    if grid is not None:
        # A schedule that two fronts share is drawn once, under the first one's name.
        drawn = {row.schedule: (name, row) for name, row in reversed(rows.items()) if not name.startswith("uniform")}
        columns = {
            f"{name}\n{row.speedup:.1f}x": judge.images_of(None if name == "stock" else row.schedule, 8)
            for name, row in sorted(drawn.values(), key=lambda item: -item[1].latency_ms)
        }
        image_grid(columns, texts[:8], grid)
        out.print(f"written to {grid}", highlight=False)
    if out_file is not None:
        conditions = {
            "model": model,
            "images": len(texts),
            "steps": sampling.steps,
            "scheduler": type(pipe.scheduler).__name__,
            "guidance_scale": guidance,
            "seed": seed,
            "batch_size": batch_size,
            "rounds": rounds,
            "hardware": hardware(where),
            "versions": versions("dato", "torch", "diffusers", "transformers"),
        }
        write_atomic(out_file, dumps({**conditions, "rows": {n: p.to_dict() for n, p in rows.items()}}) + "\n")
        out.print(f"written to {out_file}", highlight=False)


def _print(rows: dict[str, Point], images: int) -> None:
    table = Table(title=f"{images} held-out prompts", title_justify="left", box=box.SIMPLE, header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("speed-up", "ms", *NAMES):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("depth by call", overflow="fold")
    for name, point in sorted(rows.items(), key=lambda row: row[1].latency_ms):
        values = [f"{shown(METRICS[n], point.metrics[n]):.{3 if n == 'ssim' else 2}f}" for n in NAMES]
        style = "dim" if name.startswith("uniform") else "bold" if name == "stock" else ""
        table.add_row(
            name, f"{point.speedup:.2f}x", f"{point.latency_ms:.0f}", *values, strip(point.schedule), style=style
        )
    out.print(table)
