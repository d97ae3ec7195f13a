"""`generate`: one image with a schedule, stock's image beside it, and how long both took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out
from dato.cli.front_run import load_for
from dato.errors import DatoError
from dato.front import Front
from dato.point import Point
from dato.report.schedule_text import strip
from dato.schedule import Schedule
from dato.search.user_choices import pick_point
from dato.strategies import load_strategy
from dato.utils.hardware import hardware
from dato.utils.names import file_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from dato.generation.sampling import Generated, Sampling


def generate_image(
    prompt: opt.Prompt,
    strategy: Annotated[
        str | None, typer.Option(help=f"A front or schedule: {opt.STRATEGY}.", show_default="none: give --speedup")
    ] = None,
    pick: Annotated[str, typer.Option(help="Which point of a front: knee, speedup=NUMBER or quality=NUMBER.")] = "knee",
    speedup: Annotated[
        float | None,
        typer.Option(
            help="Without a front: how many times fewer FLOPs the UNet takes. A rule makes the schedule.",
            show_default="none: give --strategy",
        ),
    ] = None,
    model: opt.Model = None,
    config: opt.Config = None,
    variant: opt.Variant = None,
    steps: opt.Steps = None,
    scheduler: opt.FrontScheduler = None,
    guidance_scale: opt.Guidance = None,
    height: opt.FrontHeight = None,
    width: opt.FrontWidth = None,
    seed: opt.Seed = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="How often to time each of the two, in turn; the median counts.")
    ] = 3,
    device: opt.Device = "auto",
    dtype: opt.FrontDtype = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the images.")] = Path("images"),
) -> None:
    """Generate an image with a schedule, and stock's from the same noise, and print both times.

    Model, steps, sampler, guidance and size are those of the front, unless given. If a point has steps or a sampler of
    its own, stock runs those of the front's reference.
    """
    loaded = None if strategy is None else load_strategy(strategy)
    chosen = _chosen(loaded, strategy, pick, speedup)
    _make(out_folder)
    run = load_for(
        loaded,
        model=model,
        config=config,
        variant=variant,
        steps=steps,
        scheduler=scheduler,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    own_steps, own_sampler = (chosen.steps, chosen.scheduler) if isinstance(chosen, Point) else (None, None)
    samplings = {"stock": run.stock, "dato": replace(run.stock, steps=steps or own_steps or run.stock.steps)}
    with err.status("Generating"):
        sampler = None if scheduler else own_sampler
        results, schedule = _in_turn(run.pipe, prompt, chosen, sampler, samplings, repeats)
    out.print(f"{hardware(run.device)}; median of {repeats}", highlight=False)
    _tell(results, samplings, out_folder, f"{file_name(prompt)}-{seed}")
    out.print(f" calls: {strip(schedule)}", highlight=False)


def _chosen(
    loaded: Front | Schedule | None, name: str | None, pick: str, speedup: float | None
) -> Point | Schedule | float:
    """Return what runs: a point of the front, the schedule, or the speed-up of the rule."""
    if (loaded is None) == (speedup is None):
        raise DatoError(
            "give either --strategy, a front or schedule, or --speedup, for which a rule makes the schedule (a point "
            "of a front is chosen by --pick speedup=NUMBER)"
        )
    if isinstance(loaded, Front):
        return pick_point(loaded, pick)
    if pick != "knee":
        raise DatoError(f"--pick {pick}: {name or 'the rule'} is one schedule, there is nothing to pick")
    if loaded is not None:
        return loaded
    from dato.unet.speedup_rule import checked_speedup

    return checked_speedup(speedup)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatoError(f"cannot write to {folder}: {error.strerror}; give another --out") from None


def _in_turn(
    pipe: DiffusionPipeline,
    prompt: str,
    chosen: Point | Schedule | float,
    sampler: str | None,
    samplings: Mapping[str, Sampling],
    repeats: int,
) -> tuple[dict[str, list[Generated]], Schedule]:
    """Generate with stock and with the schedule in turn. The first round warms up.

    Returns:
        What each repeat gave, and the schedule that ran.
    """
    from dato.generation.sampling import generate
    from dato.samplers import known_sampler, sampler_set
    from dato.unet.patch import apply_patch, current_schedule, remove_patch

    patch = {"speedup": chosen} if isinstance(chosen, float) else {"schedule": chosen}
    samplers = {"dato": known_sampler(sampler)}
    results: dict[str, list[Generated]] = {name: [] for name in samplings}
    for repeat in range(repeats + 1):
        for name, sampling in samplings.items():
            with sampler_set(pipe, samplers.get(name)):
                remove_patch(pipe) if name == "stock" else apply_patch(pipe, **patch)
                result = generate(pipe, [prompt], sampling)
            if repeat:
                results[name].append(result)
    return results, current_schedule(pipe)


def _tell(results: Mapping[str, list[Generated]], samplings: Mapping[str, Sampling], folder: Path, stem: str) -> None:
    """Write the images, and print how long they took."""
    from dato.utils.files import write_atomic
    from dato.utils.images import png

    times = {name: statistics.median(r.latency_ms[0] for r in repeats) for name, repeats in results.items()}
    for name, repeats in results.items():
        path = folder / f"{stem}{'' if name == 'dato' else '-stock'}.png"
        write_atomic(path, png(repeats[-1].images[0]))
        ratio = f" ({times['stock'] / times['dato']:.2f}x faster)" if name == "dato" else ""
        out.print(
            f"{name:>6}: {samplings[name].steps} steps, {times[name]:8.1f} ms{ratio}  {path}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
