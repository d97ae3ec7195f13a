"""What ComfyUI calls while a model with dato's settings generates: three wrappers, and nothing else.

OUTER_SAMPLE begins and ends a generation. PREDICT_NOISE begins a call of the sampler. DIFFUSION_MODEL runs a call of
the UNet. A generation is kept in the options of its own guider, which ComfyUI has copied for it. So generations that
are going on at the same time do not meet, and one that was interrupted leaves nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from dato.comfyui.run import NAMES, Run
from dato.comfyui.run_schedule import schedule_of_run
from dato.comfyui.sampler_calls import SamplerCalls, sampler_of
from dato.comfyui.settings import RUN_KEY, Settings, settings_of
from dato.comfyui.show import show
from dato.comfyui.summary import what_ran
from dato.unet.comfyui_unet import ComfyUNet, unet_in

_log = logging.getLogger(__name__)


def outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a generation: ComfyUI's `outer_sample(noise, latent_image, sampler, sigmas, ...)` of a guider."""
    guider = executor.class_obj
    settings = settings_of(guider.model_options.get("transformer_options", {}))
    given = dict(zip(("noise", "latent_image", "sampler", "sigmas"), args, strict=False), **kwargs)
    unet = unet_in(guider.model_patcher)
    if len(given["sigmas"]) < 2 or not ComfyUNet.fits(unet):
        return executor(*args, **kwargs)
    run = begin(settings, unet, given["sampler"], given["sigmas"].tolist(), getattr(guider, "cfg", None))
    try:
        with _in_options(guider, run):
            return executor(*args, **kwargs)
    finally:
        if run.depths or run.besides:
            text = what_ran(run)
            _log.info("dato: %s", text)
            show(text, settings.nodes)
        run.end()


def begin(settings: Settings, unet: torch.nn.Module, sampler: Any, sigmas: list[float], cfg: float | None) -> Run:
    """Begin a generation.

    Args:
        settings: What the nodes set.
        unet: The UNet.
        sampler: ComfyUI's sampler.
        sigmas: The noise levels, with the one at which the sampler ends.
        cfg: The scale of classifier-free guidance.
    """
    name = sampler_of(sampler)
    calls = SamplerCalls(sigmas, name)
    schedule = schedule_of_run(settings, unet, calls.total, name, cfg)
    made_for = None if settings.schedule is None else len(settings.schedule)
    return Run(unet, schedule, calls, settings.ratio or 0.0, made_for)


def predict_noise(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a call of the sampler: ComfyUI's `predict_noise(x, timestep, model_options, seed)` of a guider."""
    options = kwargs.get("model_options", args[2] if len(args) > 2 else {})
    run = options.get("transformer_options", {}).get(RUN_KEY)
    if run is not None:
        run.begin_call(kwargs.get("timestep", args[1] if len(args) > 1 else None))
    return executor(*args, **kwargs)


@partial(torch.compiler.disable, recursive=False)
def diffusion_model(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Run a call of the UNet.

    The wrappers of other nodes within this one run too, at any depth. So our part is put in the place of the forward
    that they wrap.
    """
    options = dict(zip(NAMES, args, strict=False), **kwargs).get("transformer_options") or {}
    run = options.get(RUN_KEY)
    if run is None or executor.class_obj is not run.unet:
        return executor(*args, **kwargs)
    forward = executor.original
    rest = type(executor).new_class_executor(
        _runner(run, forward), executor.class_obj, executor.wrappers, executor.idx + 1
    )
    return rest.execute(*args, **kwargs)


def _runner(run: Run, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: run.call(forward, args, kwargs)


@contextlib.contextmanager
def _in_options(guider: Any, run: Run) -> Iterator[None]:
    """Put a generation into a guider's options in a `with` block. The dictionaries that were there are not changed."""
    before = guider.model_options
    transformer_options = {**before.get("transformer_options", {}), RUN_KEY: run}
    guider.model_options = {**before, "transformer_options": transformer_options}
    try:
        yield
    finally:
        guider.model_options = before
