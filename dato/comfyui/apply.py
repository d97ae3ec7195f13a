"""Put dato's settings and wrappers into a copy of a ComfyUI model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dato.comfyui.settings import KEY, Settings, chosen, settings_of
from dato.comfyui.wrappers import diffusion_model, outer_sample, predict_noise
from dato.errors import DatoError
from dato.pruning import Pruning
from dato.unet.comfyui_unet import ComfyUNet, unet_in
from dato.unet.ladder import Ladder
from dato.unet.speedup_rule import checked_speedup

# ComfyUI's names of the places where wrappers go.
_WRAPPERS = {"outer_sample": outer_sample, "predict_noise": predict_noise, "diffusion_model": diffusion_model}


def apply_schedule(
    model: Any,
    name: str = "",
    pick: str = "speed-up",
    speedup: float = 2.0,
    quality: float = 0.0,
    start: float = 0.0,
    end: float = 1.0,
    node: str | None = None,
) -> tuple[Any, Settings]:
    """Return a copy of a model that runs a schedule, and its settings.

    Args:
        model: ComfyUI's model (a `ModelPatcher`).
        name: A front or a schedule (see `dato.load_front`); "" for the rule.
        pick: How to choose a point of a front: "speed-up", "quality" or "knee".
        speedup: For "speed-up": how many times as fast as stock at least. For the rule: how many times fewer FLOPs.
        quality: For "quality": the least quality.
        start: The share of the calls before which all are whole.
        end: The share of the calls after which all are whole.
        node: The id of the node in the graph.

    Raises:
        DatoError: if the model has no UNet that can run it, or an input is wrong.
    """
    rungs = _rungs(model)
    if not 0 <= start <= end <= 1:
        raise DatoError(f"`start` ({start:g}) must be below `end` ({end:g}), and both from 0 to 1")
    values: dict[str, Any] = {"start": start, "end": end}
    if name.strip():
        schedule, point = chosen(name.strip(), pick, speedup, quality)
        values |= {"name": name.strip(), "schedule": schedule.for_rungs(rungs), "point": point}
    else:
        values |= {"name": "the rule", "speedup": checked_speedup(speedup)}
    return with_settings(model, settings_of(_options(model)).with_schedule(**values).with_node(node))


def prune_tokens(model: Any, ratio: float = 0.5, node: str | None = None, **pruning: Any) -> tuple[Any, Settings]:
    """Return a copy of a model that prunes tokens in every call, and its settings.

    Args:
        model: ComfyUI's model (a `ModelPatcher`).
        ratio: The share of tokens to leave out. It replaces the ratios of a schedule.
        node: The id of the node in the graph.
        **pruning: Fields of `dato.Pruning`.

    Raises:
        DatoError: if the model has no UNet that can prune, or an input is wrong.
    """
    unet = _unet(model)
    if not 0 <= ratio < 1:
        raise DatoError(f"`ratio` must be from 0 to below 1, not {ratio!r}")
    settings, places = Pruning(**pruning), ComfyUNet(unet).places
    first = min(places.downsamplings, default=None)
    if first is None:
        raise DatoError("dato: this UNet has no transformer blocks, so it has no tokens to prune")
    if settings.max_downsample is not None and settings.max_downsample < first:
        raise DatoError(
            f"dato: this UNet's attention begins at a downsampling of {first}, so `max_downsample` "
            f"{settings.max_downsample} prunes nothing; give {first}"
        )
    return with_settings(model, replace(settings_of(_options(model)), ratio=ratio, pruning=settings).with_node(node))


def with_settings(model: Any, settings: Settings) -> tuple[Any, Settings]:
    """Return a copy of a model with these settings and our wrappers."""
    model = model.clone()
    _options(model)[KEY] = settings
    for kind, wrapper in _WRAPPERS.items():
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model, settings


def _options(model: Any) -> dict[str, Any]:
    return model.model_options.setdefault("transformer_options", {})


def _unet(model: Any) -> Any:
    """Return the UNet of a model. Raise DatoError if it is of another kind."""
    unet = unet_in(model)
    if not ComfyUNet.fits(unet):
        raise DatoError(
            f"dato: this model is a {type(unet).__name__}. dato runs UNets, as of Stable Diffusion 1.x, 2.x and SDXL"
        )
    if unet.default_num_video_frames is not None:
        raise DatoError("dato: this is a video model, which dato does not run")
    return unet


def _rungs(model: Any) -> int:
    return len(Ladder(ComfyUNet(_unet(model))))
