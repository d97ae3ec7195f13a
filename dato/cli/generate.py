"""`generate`: one image with a schedule, stock's image beside it, and how long both took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out, quiet_libraries
from dato.errors import DatoError
from dato.front import Front
from dato.point import Point
from dato.report.schedule_text import strip
from dato.schedule import Schedule
from dato.search.user_choices import pick_point
from dato.strategies import load_strategy
from dato.utils.names import file_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from dato.generation.sampling import Generated, Sampling


def generate_image(
    prompt: opt.Prompt,
    strategy: Annotated[str, typer.Option(help=f"A front or schedule: {opt.STRATEGY}.")],
    pick: Annotated[str, typer.Option(help="Which point of a front: knee, speedup=NUMBER or quality=NUMBER.")] = "knee",
    model: opt.Model = None,
    config: opt.Config = None,
    variant: opt.Variant = None,
    steps: opt.Steps = None,
    scheduler: opt.Scheduler = None,
    guidance_scale: opt.Guidance = None,
    height: opt.Height = None,
    width: opt.Width = None,
    seed: opt.Seed = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="How often to time each of the two, in turn; the median counts.")
    ] = 3,
    device: opt.Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or auto.", show_default="the front's")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the images.")] = Path("images"),
) -> None:
    """Generate an image with a schedule, and stock's from the same noise, and print both times.

    Model, steps, sampler, guidance and size are those of the front, unless given. If a schedule has its own number of
    steps, stock runs the steps of the front's reference.
    """
    from dato.generation.guidance import usual_guidance
    from dato.generation.pipelines import load_pipeline
    from dato.generation.sampling import Sampling
    from dato.utils.hardware import hardware

    quiet_libraries()
    loaded = load_strategy(strategy)
    if not isinstance(loaded, Front) and pick != "knee":
        raise DatoError(f"--pick {pick}: {strategy} is one schedule, there is nothing to pick")
    chosen = pick_point(loaded, pick) if isinstance(loaded, Front) else loaded
    conditions = loaded.conditions if isinstance(loaded, Front) else {}
    _make(out_folder)
    where = opt.device_of(device)
    name, loading, of_model = opt.model_of(model, config, variant, conditions)
    with err.status(f"Loading {name}"):
        kind = opt.dtype_of(dtype, where, conditions.get("dtype", "auto"))
        sampler = scheduler or conditions.get("scheduler_name")
        pipe = load_pipeline(name, device=where, dtype=kind, scheduler=sampler, **loading)
    stock = Sampling(
        steps or conditions.get("steps", 50),
        guidance_scale or conditions.get("guidance_scale") or usual_guidance(name),
        height or of_model.get("height"),
        width or of_model.get("width"),
        seed,
        batch_size=1,
    )
    own_steps = chosen.steps if isinstance(chosen, Point) else None
    samplings = {"stock": stock, "dato": replace(stock, steps=steps or own_steps or stock.steps)}
    with err.status("Generating"):
        results = _in_turn(pipe, prompt, chosen, samplings, repeats)
    out.print(f"{hardware(where)}; median of {repeats}", highlight=False)
    _tell(results, samplings, out_folder, f"{file_name(prompt)}-{seed}")
    out.print(f" calls: {strip(chosen.schedule if isinstance(chosen, Point) else chosen)}", highlight=False)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatoError(f"cannot write to {folder}: {error.strerror}; give another --out") from None


def _in_turn(
    pipe: DiffusionPipeline, prompt: str, chosen: Point | Schedule, samplings: Mapping[str, Sampling], repeats: int
) -> dict[str, list[Generated]]:
    """Generate with stock and with the schedule in turn, and return what each repeat gave. The first round warms up."""
    from dato.generation.sampling import generate
    from dato.unet.patch import apply_patch, remove_patch

    results: dict[str, list[Generated]] = {name: [] for name in samplings}
    for repeat in range(repeats + 1):
        for name, sampling in samplings.items():
            remove_patch(pipe) if name == "stock" else apply_patch(pipe, chosen)
            result = generate(pipe, [prompt], sampling)
            if repeat:
                results[name].append(result)
    return results


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
