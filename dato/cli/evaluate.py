"""The command `evaluate`: judge fronts and schedules on prompts that no search has seen, beside other methods."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich import box
from rich.table import Table

from dato.cli import metric_options as metric
from dato.cli import options as opt
from dato.cli.console import err, out, quiet_libraries, show_progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.methods import STOCK
from dato.experiments.method_families import DEFAULT_FAMILIES, FAMILIES, check_families, has_tomesd, thinned
from dato.front import Front
from dato.generation.prompts import COCO_COUNT, coco_captions, imagenet_prompts, read_prompts
from dato.generation.protocols import PROTOCOLS, SCHEDULER, SIZE, STEPS
from dato.metrics import METRICS, setup_for
from dato.samplers import SAMPLERS
from dato.schedule import Schedule
from dato.search.user_choices import pick_point
from dato.strategies import load_strategy

if TYPE_CHECKING:
    from dato.experiments.paper_evaluation import Entry, Evaluation


@metric.with_metric_options(before="seed")
def evaluate(
    ctx: typer.Context,
    strategies: Annotated[list[str] | None, typer.Argument(help=f"Fronts or schedules, each {opt.STRATEGY}.")] = None,
    chosen: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help=f"What to compare with: {', '.join(FAMILIES)} (steps: stock with fewer steps; rules: schedules that "
            "need no search; order0 to order2 and aligned: fewer steps and shallow calls, by forecast; from layers on, "
            "SiTo's ablations).",
            show_default=f"{','.join(DEFAULT_FAMILIES)}, and tomesd where it is installed",
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            min=2, help="At most this many points of each front, spread over its speed-ups.", show_default="all"
        ),
    ] = None,
    pick: Annotated[
        list[str] | None,
        typer.Option(help="Only this point of each front: knee, speedup=NUMBER or quality=NUMBER; may be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id of a diffusers pipeline, or a file with the whole model.",
            show_default="the first front's",
            callback=opt.model_place,
        ),
    ] = None,
    config: opt.Config = None,
    variant: opt.Variant = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help=f"The papers' settings and prompts: {', '.join(PROTOCOLS)} (imagenet: its 1,000 classes, 2 each; "
            f"coco: 30,000 captions; file: --prompts; {STEPS} PLMS steps, {SIZE} x {SIZE}, guidance 7.5, SD 2.x 9.0).",
        ),
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO's captions_val2014.json, for --protocol coco.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt a line.", show_default="the embedded model's evaluation split"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampler steps of the reference.", show_default="the first front's")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help=f"Sampler: {', '.join(SAMPLERS)}.", show_default="the first front's")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, help="Classifier-free guidance; 1 is off.", show_default="the first front's")
    ] = None,
    height: opt.Height = None,
    width: opt.Width = None,
    images: Annotated[int | None, typer.Option(min=2, help="How many prompts.", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation.")] = 2,
    metrics: Annotated[
        str | None,
        typer.Option(
            help=f"What to measure: {', '.join(METRICS)}.",
            show_default="clip-score, frechet, psnr, ssim; of other models fid and kid (with --real), clip-score, "
            "image-reward, psnr",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Image i starts from the noise of seed + i.")] = 1000,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="GPUs (or shares of a CPU) that work at the same time; above 1 with Ray.")
    ] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster, as auto or ray://host:10001.")] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of images, measurements and tables; what is there is not made again.",
            show_default="runs/evaluation-<time>",
        ),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(help="Also write a PNG: eight prompts' images by stock and each method at 3x, 5x and 8x."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also write a PNG: two of the metrics against the share of stock's time.")
    ] = None,
    plot_flops: Annotated[
        bool,
        typer.Option("--plot-flops", help="--plot has shares of FLOPs, which are exact also where times are noisy."),
    ] = False,
) -> None:
    """Evaluate schedules on held-out prompts, beside stock, stock with fewer steps, DeepCache, SiTo, ToMeSD, Spectrum.

    Each batch of prompts is generated with all of them in turn, so that all times come from one run. If the command is
    stopped or killed, the same command with the same --out goes on where it was.
    """
    from dato.evaluation.pool import Recipe
    from dato.experiments import paper_evaluation
    from dato.generation.sampling import Sampling

    quiet_libraries()
    loaded = {name: load_strategy(name) for name in strategies or []}
    families = _families(chosen)
    entries = _entries(loaded, families, points, pick or [])
    conditions = next((strategy.conditions for strategy in loaded.values() if isinstance(strategy, Front)), {})
    model, loading, same_model = opt.model_of(model, config, variant, conditions)
    texts = _prompts(protocol, model, prompts, captions, images)
    files = metric.files_of(ctx.params)
    where = opt.device_of(device, elsewhere=ray_address is not None)
    given = _Settings(steps, scheduler, guidance_scale, height, width)
    settings = _completed(given, protocol, model, conditions, same_model)
    recipe = Recipe(
        model,
        str(where),
        opt.dtype_name(dtype, where),
        settings.scheduler,
        tuple(texts),
        Sampling(settings.steps, settings.guidance_scale, settings.height, settings.width, seed, batch_size),
        (),
        _metrics(metrics, model, files),
        setup_for(model, files),
        **loading,
    )
    folder = out_folder or opt.new_folder(None, "evaluation")
    err.print(f"Writing to {folder}. If stopped, go on with the same command and --out {folder}.", soft_wrap=True)
    if (pictures := metric.real_pictures_of(recipe.metrics, files)) is not None:
        err.print(pictures, soft_wrap=True, markup=False, highlight=False)
    result = paper_evaluation.evaluate(
        recipe, folder, families, entries, workers=workers, ray_address=ray_address, progress=show_progress
    )
    result.save()
    _show(result, {name for entry in entries for name in result.families.get(entry.label, ())})
    for path, draw in ((plot, partial(result.plot, flops=plot_flops)), (grid, result.grid)):
        if path is not None:
            draw(path)
            out.print(f"written to {path}", highlight=False)


class _Settings(NamedTuple):
    """How images are generated. None: not given on the command line, or the model's own."""

    steps: int | None
    scheduler: str | None
    guidance_scale: float | None
    height: int | None
    width: int | None


def _completed(
    given: _Settings,
    protocol: str | None,
    model: str,
    conditions: Mapping[str, Any],
    same_model: Mapping[str, Any],
) -> _Settings:
    """Return the given settings, completed from the protocol or, without one, from the first front.

    Args:
        given: What the command line gives.
        protocol: The protocol's name; None: there is none.
        model: The model's name.
        conditions: The first front's conditions.
        same_model: The same if the front was searched with this model, else nothing.
    """
    from dato.generation.guidance import guidance_of, usual_guidance

    if protocol is not None:
        size = None if model == EMBEDDED else SIZE
        return _Settings(
            given.steps or STEPS,
            given.scheduler or SCHEDULER,
            given.guidance_scale or guidance_of(model),
            given.height or size,
            given.width or size,
        )
    return _Settings(
        given.steps or conditions.get("steps", STEPS),
        given.scheduler or conditions.get("scheduler_name"),
        given.guidance_scale or conditions.get("guidance_scale") or usual_guidance(model),
        given.height or same_model.get("height"),
        given.width or same_model.get("width"),
    )


def _show(result: Evaluation, ours: Collection[str]) -> None:
    """Print the table, with the methods `ours` bright, what went wrong, and where everything was written."""
    for name, reason in result.failures.items():
        warnings.warn(f"{name}: {reason}", stacklevel=2)
    out.print(_table(result.rows(), len(result.recipe.prompts), ours))
    for claim in result.claims():
        out.print(str(claim), highlight=False, soft_wrap=True, markup=False)
    for name, error in result.precision_errors.items():
        out.print(f"{name} in half precision differs from float32 by at most {error:.2g} here", highlight=False)
    out.print(f"written to {result.store.folder}", highlight=False, soft_wrap=True, markup=False)


def _families(text: str | None) -> list[str]:
    """Return the families of methods that --methods asks for."""
    if text is None:
        if not has_tomesd():
            err.print("ToMeSD is not installed, and left out: pip install tomesd", highlight=False)
        return [*DEFAULT_FAMILIES, *(["tomesd"] if has_tomesd() else [])]
    names = text.split(",") if text else []
    try:
        check_families(names)
    except DatoError as error:
        raise DatoError(f"--methods: {error}") from None
    return names


def _entries(
    loaded: Mapping[str, Front | Schedule], families: Sequence[str], most: int | None, picks: Sequence[str]
) -> list[Entry]:
    """Return the strategies to evaluate, with the points that --pick or --points asks for."""
    if most is not None and picks:
        raise DatoError("give --points or --pick: the first spreads points over a front, the second names them")
    _check_labels(loaded, families)
    return [_entry(name, strategy, most, picks) for name, strategy in loaded.items()]


def _check_labels(loaded: Mapping[str, Front | Schedule], families: Sequence[str]) -> None:
    """Raise DatoError if two rows or families of rows would have the same name."""
    from dato.experiments.paper_evaluation import title_of

    taken = [title_of(name) for name in families]
    for name in loaded:
        if _label(name) in taken:
            raise DatoError(f"two strategies or methods are called {_label(name)}: rename one of the files")
        taken.append(_label(name))


def _label(name: str) -> str:
    """Return what tables call a strategy: the name of its file, or of its run's folder."""
    path = Path(name)
    return path.parent.name if path.name == "pareto.json" else path.stem


def _entry(name: str, strategy: Front | Schedule, most: int | None, picks: Sequence[str]) -> Entry:
    """Return a strategy with its points."""
    from dato.experiments.paper_evaluation import Entry

    if not isinstance(strategy, Front):
        if picks:
            raise DatoError(f"--pick {picks[0]}: {name} is one schedule, there is nothing to pick")
        return Entry(_label(name), strategy, {})
    numbers = {id(point): number for number, point in enumerate(strategy.points)}
    picked = {numbers[id(point)]: point for point in (pick_point(strategy, text) for text in picks)}
    return Entry(_label(name), strategy, dict(sorted(picked.items())) or thinned(strategy, most))


def _prompts(
    protocol: str | None, model: str, prompts: Path | None, captions: Path | None, images: int | None
) -> list[str]:
    """Return the prompts: the protocol's, those of a file, or the embedded model's."""
    if protocol is not None and protocol not in PROTOCOLS:
        raise DatoError(f"--protocol {protocol!r}: known are {', '.join(PROTOCOLS)}")
    if protocol in ("imagenet", "coco") and prompts is not None:
        raise DatoError(f"--protocol {protocol} has its own prompts: leave out --prompts, or say --protocol file")
    if protocol == "imagenet":
        return imagenet_prompts(*([] if images is None else [images]))
    if protocol == "coco":
        if captions is None:
            raise DatoError("--protocol coco: give --captions with COCO's captions_val2014.json")
        return coco_captions(captions, images or COCO_COUNT)
    if prompts is None and (model != EMBEDDED or protocol == "file"):
        raise DatoError(f"give --prompts or --protocol for {model}: the built-in prompts are {EMBEDDED}'s")
    return read_prompts(prompts, images, "evaluation")


def _metrics(text: str | None, model: str, files: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the metrics. Raises DatoError for an unknown one."""
    if text is not None:
        names = tuple(dict.fromkeys(text.split(",")))
    else:
        names = ("clip-score", "frechet", "psnr", "ssim")
        if model != EMBEDDED:
            names = ("clip-score", "image-reward", "psnr")
        if "real" in files:
            names = ("fid", *(["kid"] if Path(files["real"]).is_dir() else []), *names)
    for name in names:
        if name not in METRICS:
            raise DatoError(f"--metrics: unknown metric {name!r}; known are {', '.join(METRICS)}")
    return names


def _table(rows: Sequence[Mapping[str, str]], images: int, ours: Collection[str]) -> Table:
    """Return the table for the terminal. It has no room for schedules, their ratios, and memory in a second form."""
    style = {"box": box.SIMPLE, "header_style": "bold", "padding": (0, 1, 0, 0)}
    table = Table(title=f"{images} prompts", title_justify="left", **style)
    columns = [column for column in rows[0] if column not in ("pruned", "total MB", "compression", "depth by call")]
    for column in columns:
        # If there is no room for everything, names are folded and numbers stay whole.
        if column == "method":
            table.add_column("", justify="left", min_width=12)
        else:
            table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        name = row["method"]
        table.add_row(*(row[c] for c in columns), style="bold" if name == STOCK else "" if name in ours else "dim")
    return table
