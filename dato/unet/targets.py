"""What can be patched: pipelines with a `UNet2DConditionModel`, and such UNets, also compiled or wrapped by peft."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from dato.errors import DatoError

SUPPORTED = (
    "supported are diffusers pipelines with a UNet2DConditionModel, as of Stable Diffusion 1.x, 2.x and XL "
    "(text-to-image, img2img, inpainting, refiner, upscaler, ControlNet, T2I-Adapter, IP-Adapter, GLIGEN, "
    "InstructPix2Pix, LCM); transformers and video are not"
)

_COMPVIS = (
    "models of CompVis' code (ldm) are not supported yet; load the same checkpoint into diffusers, with "
    "`dato.load_pipeline(FILE)` or `StableDiffusionPipeline.from_single_file(FILE)`"
)


def unet_of(pipe_or_unet: Any) -> tuple[UNet2DConditionModel, Any]:
    """Return the UNet, and the pipeline around it if there is one.

    Raises:
        DatoError: if there is no UNet of the kind that dato patches.
    """
    unet = _inner(pipe_or_unet)
    if isinstance(unet, UNet2DConditionModel):
        return unet, None
    unet = _inner(getattr(pipe_or_unet, "unet", None))
    if isinstance(unet, UNet2DConditionModel):
        return unet, pipe_or_unet
    name = type(pipe_or_unet).__name__
    if _is_of_compvis(pipe_or_unet):
        raise DatoError(f"cannot patch {name}: {_COMPVIS}")
    part = next((p for p in (unet, *(getattr(pipe_or_unet, n, None) for n in ("transformer", "prior"))) if p), None)
    what = name if part is None else f"a {name} with a {type(_inner(part)).__name__}"
    raise DatoError(f"cannot patch {what}: {SUPPORTED}")


def owns(pipe: Any, unet: UNet2DConditionModel) -> bool:
    """Return whether this is a pipeline's UNet, also if it is compiled or wrapped by peft."""
    return _inner(getattr(pipe, "unet", None)) is unet


def latent_size(unet: UNet2DConditionModel) -> tuple[int, int] | None:
    """Return (H, W) of the latents that a UNet was made for; None if its configuration does not say."""
    size = unet.config.sample_size
    size = [size] * 2 if isinstance(size, int) else size
    return tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def wrapper_of(pipe_or_unet: Any) -> nn.Module | None:
    """Return what `torch.compile` made of the UNet, if it stands in the UNet's place."""
    whole = getattr(pipe_or_unet, "unet", pipe_or_unet)
    return whole if hasattr(whole, "_orig_mod") else None


def compile_settings(pipe_or_unet: Any, compiled: Any = None) -> bool | dict[str, Any]:
    """Return the value of `compile=` that repeats how the user compiled the UNet; False if it is not compiled.

    Args:
        pipe_or_unet: The pipeline or UNet.
        compiled: What `unet.compile()` made, if a patch has put it aside.
    """
    wrapper = wrapper_of(pipe_or_unet)
    if wrapper is not None:
        return _backend_of(getattr(wrapper, "dynamo_ctx", None))
    compiled = unet_of(pipe_or_unet)[0]._compiled_call_impl or compiled
    if compiled is None:
        return False
    # If a module was compiled in place, only this function's closure holds the context.
    config = getattr(compiled, "get_compiler_config", None)
    cells = dict(zip(config.__code__.co_freevars, config.__closure__ or (), strict=True)) if config else {}
    return _backend_of(cells["self"].cell_contents if "self" in cells else None)


def _backend_of(context: Any) -> bool | dict[str, Any]:
    """Return the backend of `torch.compile`, which holds its mode and options; True if it is not visible."""
    backend = getattr(context, "callback", None)
    links = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")  # the second in older versions
    while link := next((name for name in links if hasattr(backend, name)), None):
        backend = getattr(backend, link)
    visible = callable(backend) and not type(backend).__module__.startswith("torch._dynamo")
    return {"backend": backend} if visible else True


def guidance_parts(pipe: Any) -> int | None:
    """Return the number of parts into which guidance divides the UNet's batch; None if it is not known.

    It is 1 without guidance, 2 with it, and 3 if an image guides as well. Perturbed attention adds one part.
    """
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    if guided is None:  # some pipelines keep it to themselves
        return None
    parts = 3 if "InstructPix2Pix" in type(pipe).__name__ else 2
    return (parts if guided else 1) + bool(getattr(pipe, "do_perturbed_attention_guidance", False))


def _is_of_compvis(model: Any) -> bool:
    """Return whether this is a `LatentDiffusion`, the wrapper within it, or the `UNetModel` within that."""
    wrapper = getattr(model, "model", model)
    return hasattr(getattr(wrapper, "diffusion_model", model), "input_blocks")


def _inner(module: Any) -> Any:
    """Return the module that `torch.compile` or peft wrapped, or both; any other module as it is."""
    while isinstance(module, nn.Module) and (inner := _wrapped(module)) is not None:
        module = inner
    return module


def _wrapped(wrapper: nn.Module) -> nn.Module | None:
    """Return the module within a wrapper; None if it is no wrapper."""
    # peft: a `PeftModel` holds a tuner such as `LoraModel`, which holds the UNet.
    of_peft = any(kind.__module__.partition(".")[0] == "peft" for kind in type(wrapper).__mro__)
    names = ("base_model", "model") if of_peft else ("_orig_mod",)
    parts = dict(wrapper.named_children())
    return next((parts[name] for name in names if name in parts), None)
