"""What can be patched: diffusers pipelines, models of CompVis' code, and their UNets, also compiled or within peft."""

from __future__ import annotations

from typing import Any

from torch import nn

from dato.errors import DatoError
from dato.unet.kinds import is_supported

SUPPORTED = (
    "supported are diffusers pipelines with a UNet2DConditionModel, as of Stable Diffusion 1.x, 2.x and XL "
    "(text-to-image, img2img, inpainting, refiner, upscaler, ControlNet, T2I-Adapter, IP-Adapter, GLIGEN, "
    "InstructPix2Pix, LCM), and models of CompVis' code with a UNetModel; transformers and video are not"
)

_COMPVIS = (
    "of CompVis' code, supported are models whose UNet is a `UNetModel`, as of Stable Diffusion 1.x, 2.x and XL; you "
    "can also load such a checkpoint into diffusers, with `dato.load_pipeline(FILE)`"
)


def unet_of(pipe_or_unet: Any) -> tuple[nn.Module, Any]:
    """Return the UNet, and the diffusers pipeline around it if there is one.

    A model of CompVis' code (`LatentDiffusion`, `DiffusionEngine`) has its UNet at `model.diffusion_model`. It holds no
    sampler, so it is no pipeline.

    Raises:
        DatoError: if there is no UNet of the kind that dato patches.
    """
    whole = _inner(pipe_or_unet)
    if is_supported(whole):
        return whole, None
    unet = _inner(getattr(pipe_or_unet, "unet", None))
    if is_supported(unet):
        return unet, pipe_or_unet
    within = _diffusion_model(whole)
    if is_supported(within):
        return within, None
    name = type(pipe_or_unet).__name__
    if within is not None:
        raise DatoError(f"cannot patch a {name} with a {type(within).__name__}: {_COMPVIS}")
    if hasattr(whole, "input_blocks"):
        raise DatoError(f"cannot patch {name}: {_COMPVIS}")
    part = next((p for p in (unet, *(getattr(pipe_or_unet, n, None) for n in ("transformer", "prior"))) if p), None)
    what = name if part is None else f"a {name} with a {type(_inner(part)).__name__}"
    raise DatoError(f"cannot patch {what}: {SUPPORTED}")


def _diffusion_model(model: Any) -> Any:
    """Return the UNet of a `LatentDiffusion`, a `DiffusionEngine`, or the wrapper within one; None if there is none."""
    for holder in (model, _inner(getattr(model, "model", None))):
        unet = _inner(getattr(holder, "diffusion_model", None))
        if unet is not None:
            return unet
    return None


def owns(pipe: Any, unet: nn.Module) -> bool:
    """Return whether this is a pipeline's UNet, also if it is compiled or wrapped by peft."""
    return _inner(getattr(pipe, "unet", None)) is unet


def latent_size(unet: nn.Module) -> tuple[int, int] | None:
    """Return (H, W) of the latents that a UNet was made for; None if it has no configuration that says so."""
    size = getattr(getattr(unet, "config", None), "sample_size", None)
    size = [size] * 2 if isinstance(size, int) else size
    return tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def wrapper_of(pipe_or_unet: Any) -> nn.Module | None:
    """Return what `torch.compile` made of the UNet, if it stands in the UNet's place."""
    model = getattr(pipe_or_unet, "model", None)
    places = ((pipe_or_unet, "unet"), (pipe_or_unet, "diffusion_model"), (model, "diffusion_model"))
    for whole in (*(getattr(holder, name, None) for holder, name in places), pipe_or_unet):
        if hasattr(whole, "_orig_mod"):
            return whole
    return None


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
