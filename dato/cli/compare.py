"""`compare_searches`: the hypervolume that each kind of search reaches, against the UNet calls that it spends."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato import emoji_sd
from dato.cli import options as opt
from dato.cli.console import err, out, progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.baselines import seeds as regular
from dato.evaluation.pool import InProcess, Recipe
from dato.experiments.search_comparison import Account
from dato.generation.sampling import Sampling
from dato.point import Point
from dato.pruning import Pruning
from dato.report.plots import curves_picture
from dato.schedule import Schedule
from dato.search.adviser import Advice
from dato.search.hypervolume import Scale, by_evaluation
from dato.search.nsga2 import search
from dato.search.presets import DEPTH_PRESETS, Preset
from dato.search.run_folder import Folder
from dato.search.spaces import DepthSpace
from dato.search.study import Study
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import versions

PAPER, QUICK = DEPTH_PRESETS["paper"], DEPTH_PRESETS["quick"]
METHODS = {
    "paper": "DaTo's settings: 450 candidates",
    "regular": "from regular schedules, with our operators",
    "raced": "the same, and losers are given up after half of their images",
    "planned": "from the sensitivity model's plans, which also ranks offspring, raced",
    "planned, all": "the same over depths 0 to 3 and forecasts of order 0 and 1",
}
WORST = 20.0  # dB, of the reference point
SHARES = (1.0, 0.15)  # of stock's time, of the reference points


def compare_searches(
    methods: Annotated[
        str | None, typer.Option(help=f"With semicolons between them: {'; '.join(METHODS)}.", show_default="all")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of each search.")] = 5,
    candidates: Annotated[int, typer.Option(min=10, help="That all but the papers' search judge.")] = 45,
    images: Annotated[int, typer.Option(min=2, help="Images (prompts) for each candidate.")] = 4,
    held_out: Annotated[int, typer.Option(min=1, help="Other prompts, on which the fronts are judged again.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="PLMS steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(min=1, help="Classifier-free guidance.")] = 3.0,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder of the journals; what they hold is not generated again.")
    ] = Path("runs/searches"),
    out_file: Annotated[Path | None, typer.Option("--json", help="Also write all numbers to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also write the curves as a PNG.")] = None,
    device: opt.Device = "auto",
) -> None:
    """Compare kinds of search on the embedded model: hypervolume against UNet calls, several seeds, held-out prompts.

    The objectives are PSNR to stock and latency by one table for all; the hypervolume lies between a share of stock's
    time and 20 dB to 100 dB (equality), and is 1 where equality would cost nothing.
    """
    chosen = list(METHODS) if methods is None else [name.strip() for name in methods.split(";")]
    for name in chosen:
        if name not in METHODS:
            raise DatoError(f"--methods: unknown search {name!r}; known are {'; '.join(METHODS)}")
    sampling = Sampling(steps, guidance_scale, batch_size=images)
    searched, other = emoji_sd.prompts("search")[:images], emoji_sd.prompts("evaluation")[:held_out]
    where = str(opt.device_of(device))
    with ExitStack() as stack:
        with err.status("Loading"):
            study = stack.enter_context(_study(out_folder / "search", searched, sampling, where))
            judge = stack.enter_context(_study(out_folder / "held-out", other, replace(sampling, seed=1000), where))
        facts = study.judges.facts
        narrow = DepthSpace([facts.calls], facts.rungs, [0, 1])
        wide = DepthSpace([facts.calls], facts.rungs, [0, 1, 2, 3], (0, 1), "aligned")
        with err.status("Measuring the latency table") as status:

            def show(done: float, rounds: int) -> None:
                status.update(f"Measuring the latency table: {done / rounds:.0%}")

            table = study.measured_table(wide.examples(), show)
        for each in (study, judge):
            each.use_table(table)
        # The model is measured on prompts of its own.
        own = emoji_sd.prompts("search")[images : 2 * images]
        advice = {}
        for name, depths in (("planned", [0, 1]), ("planned, all", [0, 1, 2, 3])):
            if name in chosen:
                with err.status("Measuring the sensitivity model"):
                    advice[name] = Advice(study.sensitivity([steps], depths, own[:1]), table)
        runs = {}
        with progress() as bar:
            task = bar.add_task("Searches", total=len(chosen) * repeats)
            for name in chosen:
                for seed in range(repeats):
                    bar.update(task, description=f"{name}, seed {seed}")
                    space = wide if name == "planned, all" else narrow
                    runs[name, seed] = _search(name, seed, candidates, study, space, advice.get(name))
                    bar.advance(task)
            task = bar.add_task("Held-out prompts", total=len(runs))
            again: dict[tuple[str, int], list[Point]] = {}
            for key, account in runs.items():
                again[key] = list(judge([point.schedule for point in account.front]))
                bar.advance(task)
    rows = [_row(name, seed, runs[name, seed], again[name, seed], study, judge) for name, seed in runs]
    _print(rows, chosen)
    if out_file is not None:
        conditions = {
            "model": EMBEDDED,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "images": images,
            "held_out": held_out,
            "candidates": candidates,
            "worst": WORST,
            "hardware": facts.hardware,
            "versions": versions("dato", "torch", "diffusers", "pymoo"),
        }
        write_atomic(out_file, dumps(conditions | {"rows": rows}) + "\n")
        out.print(f"written to {out_file}", highlight=False)
    if plot is not None:
        curves = {name: [row["curve"] for row in rows if row["search"] == name] for name in chosen}
        curves_picture(curves, "UNet calls spent", "hypervolume on the prompts of the search", plot)
        out.print(f"written to {plot}", highlight=False)


@contextmanager
def _study(folder: Path, prompts: Sequence[str], sampling: Sampling, device: str) -> Iterator[Study]:
    """A study of one set of prompts."""
    recipe = Recipe(EMBEDDED, device, "float32", "plms", tuple(prompts), sampling, (), ("psnr",))
    study = Study(Folder(folder), InProcess(recipe.evaluator()))
    settings = {
        "prompts": list(prompts),
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "seed": sampling.seed,
    }
    try:
        study.begin("compare", {}, settings, Pruning())
        yield study
    finally:
        study.close()


def _search(name: str, seed: int, candidates: int, study: Study, space: DepthSpace, advice: Advice | None) -> Account:
    account = Account(study, None if name in ("paper", "regular") else max(1, len(study.stock.images) // 2))
    if name == "paper":
        list(search(space, account, PAPER, seed=seed))
        return account
    preset: Preset = replace(QUICK, pop_size=candidates // 3, generations=3)
    begin: Sequence[Schedule] = regular(space.calls, space.rungs, space.orders, space.forecast, preset.pop_size)
    options: dict[str, Any] = {}
    if advice is not None:
        account.calls = advice.unet_calls
        begin = advice.plans(space, preset.pop_size)
        options["adviser"] = Advice(advice.models, advice.table)
    list(search(space, account, preset, seed=seed, seeds=begin, **options))
    return account


def _row(name: str, seed: int, account: Account, again: Sequence[Point], study: Study, judge: Study) -> dict[str, Any]:
    row: dict[str, Any] = {
        "search": name,
        "seed": seed,
        "candidates": len(account.points),
        "unet_calls": account.calls,
        "points": len(account.front),
    }
    for share in SHARES:
        scale = Scale(WORST, 100.0, share)
        row[f"hypervolume at {share:g}"] = by_evaluation(account.points, scale)[-1]
        row[f"held-out at {share:g}"] = by_evaluation(again, scale)[-1]
    row["curve"] = account.curve(Scale(WORST, 100.0, SHARES[-1]))
    row["front"] = [
        [p.latency_ms / study.table.predict(study.stock.point.schedule), p.quality, a.quality]
        for p, a in zip(account.front, again, strict=True)
    ]
    return row


def _print(rows: Sequence[dict[str, Any]], chosen: Sequence[str]) -> None:
    table = Table(box=box.SIMPLE, header_style="bold", title="Mean ± standard deviation over seeds")
    columns = {"candidates": ".0f", "unet_calls": ".0f"}
    columns |= {f"{kind} at {share:g}": ".4f" for share in SHARES for kind in ("hypervolume", "held-out")}
    table.add_column("search", no_wrap=True)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name in chosen:
        own = [row for row in rows if row["search"] == name]
        cells = []
        for column, form in columns.items():
            values = [row[column] for row in own]
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):{form}}{spread}")
        table.add_row(name, *cells)
    out.print(table)
    for name in chosen:
        out.print(f"{name}: {METHODS[name]}", highlight=False, style="dim")
