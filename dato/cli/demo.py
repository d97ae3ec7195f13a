"""`demo`: a page in the browser, to try a front with one's own prompts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out
from dato.cli.front_run import FrontRun, load_for
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.front import Front
from dato.schedule import Schedule
from dato.strategies import load_strategy

if TYPE_CHECKING:
    from dato.demo.usage import Loading

SHIPPED = "emoji-sd-depth"  # the front of the embedded model
PROMPT = "rose on a white background"  # with which the page of the embedded model begins
QUICK_S = 6.0  # if stock takes no longer than this for an image, the page begins with one


def demo(
    model: opt.Model = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help=f"A front or schedule: {opt.STRATEGY}.", show_default=f"{SHIPPED}; for another model: none, the rule"
        ),
    ] = None,
    config: opt.Config = None,
    variant: opt.Variant = None,
    steps: opt.Steps = None,
    scheduler: opt.FrontScheduler = None,
    guidance_scale: opt.Guidance = None,
    height: opt.FrontHeight = None,
    width: opt.FrontWidth = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file, one prompt a line, for the page's random prompts.",
            show_default="the embedded model's evaluation split; else the front's; else ImageNet's classes",
        ),
    ] = None,
    device: opt.Device = "auto",
    dtype: opt.FrontDtype = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. 0.0.0.0 lets every machine of the network use the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: a free one.")] = 7860,
) -> None:
    """Open a page in the browser: drag along a front, and see stock and dato side by side from the same noise.

    Model, steps, sampler, guidance and size are those of the front, unless given. The page needs gradio, which the
    extra "demo" of the package installs.
    """
    if importlib.util.find_spec("gradio") is None:
        raise DatoError('dato demo needs gradio: pip install "dato[demo]"')
    from dato.demo.choices import choices_of
    from dato.demo.heading import heading, without_front
    from dato.demo.page import make_page
    from dato.demo.server import address, application, bind, serve
    from dato.demo.sessions import Sessions
    from dato.demo.studio import Studio
    from dato.generation.prompts import read_prompts

    name = SHIPPED if strategy is None and model in (None, EMBEDDED) else strategy
    loaded = None if name is None else load_strategy(name)
    texts = None if prompts is None else read_prompts(prompts)
    with bind(host, port) as listening:
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
        )
        typed = {"--model": model, "--config": config, "--variant": variant, "--steps": steps, "--scheduler": scheduler}
        typed |= {"--guidance-scale": guidance_scale, "--height": height, "--width": width}
        typed |= {"--device": None if device == "auto" else device, "--dtype": dtype}
        given = {option: f"{value}" for option, value in typed.items() if value is not None}
        choices = choices_of(loaded, name, steps, scheduler) if loaded is not None else ((), 0)
        studio = Studio(run.pipe, run.stock)
        try:
            with err.status("Generating once, to warm up"):
                seconds = studio.warm_up()
            sessions = Sessions(studio, _loading(run, given), choices[0], texts or _prompts(run.model, loaded))
            page = make_page(
                sessions,
                heading(run.model, run.pipe, run.stock),
                without_front(run.model),
                choices[1],
                PROMPT if run.model == EMBEDDED else sessions.prompts[0],
                at_once=seconds < QUICK_S,
            )
            place = address(listening)
            out.print(f"Open {place} in a browser. Ctrl-C ends it.", highlight=False, soft_wrap=True, markup=False)
            serve(application(page, host), listening)
        finally:
            studio.close()


def _loading(run: FrontRun, given: dict[str, str]) -> Loading:
    """Return how a pipeline was loaded, in the words of Python and of the command."""
    from dato.demo.usage import Loading
    from dato.samplers import sampler_name

    return Loading(
        run.model,
        run.scheduler,
        sampler_name(run.pipe.scheduler),
        str(run.device),
        str(run.dtype).removeprefix("torch."),
        run.config,
        run.variant,
        given,
    )


def _prompts(model: str, loaded: Front | Schedule | None) -> list[str]:
    """Return prompts to try a model with: prompts that no search has seen, if there are such."""
    from dato.generation.prompts import imagenet_prompts, read_prompts

    if model == EMBEDDED:
        return read_prompts(None, split="evaluation")
    conditions = loaded.conditions if isinstance(loaded, Front) else {}
    searched = conditions.get("validation_prompts") or conditions.get("prompts")
    return [str(prompt) for prompt in searched] if searched else imagenet_prompts(1000)
