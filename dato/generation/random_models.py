"""Pipelines of published configurations with random weights, to measure time and memory without the real weights.

The time of a call does not depend on the values of the weights. All parts have the published numbers of parameters. The
tokenizer is the embedded model's, padded to 77 tokens. The images are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dato import emoji_sd
from dato.errors import DatoError
from dato.generation.model_configs import CONFIGS, RANDOM_MODELS


def random_pipeline(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> DiffusionPipeline:
    """Return a pipeline of a published configuration with random weights. Nothing is downloaded.

    Args:
        name: One of `RANDOM_MODELS`.
        device: Where to make the weights. "meta" makes none.
        dtype: The precision.
        seed: The same seed gives the same weights on the same device, in the same dtype.
        overrides: Entries of the configuration to replace, by part ("unet", "vae", "text_encoder", ...).

    Raises:
        DatoError: if the name is unknown.
    """
    if name not in CONFIGS:
        raise DatoError(f"unknown random model {name!r}; known are {', '.join(RANDOM_MODELS)}")
    tokenizer = CLIPTokenizer.from_pretrained(emoji_sd.PIPE / "tokenizer", model_max_length=77)
    configs = {part: {**config, **(overrides or {}).get(part, {})} for part, config in CONFIGS[name].items()}
    scheduler = configs.pop("scheduler")

    with init_empty_weights(include_buffers=False):  # no memory and no slow initialisation
        parts = {part: _part(part, config, tokenizer) for part, config in configs.items()}
    device = torch.device(device)
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    for model in parts.values():
        _fill(model.eval(), device, dtype, generator)

    if name == "sdxl-random":
        return StableDiffusionXLPipeline(
            **parts,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler.from_config(scheduler),
            add_watermarker=False,
        )
    return StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=PNDMScheduler.from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _part(part: str, config: dict[str, Any], tokenizer: CLIPTokenizer) -> nn.Module:
    if part == "unet":
        return UNet2DConditionModel(**config)
    if part == "vae":
        return AutoencoderKL(**config)
    # The pooled state is taken at the end token. Its id is not that of the published vocabulary.
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    return kind(CLIPTextConfig(**(special | config)))


def _fill(model: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator | None) -> None:
    """Give every parameter memory and a value. Biases are 0, norms are 1, weights keep the variance of their input."""
    for module in model.modules():
        for name, empty in module.named_parameters(recurse=False):
            weight = torch.empty(empty.shape, dtype=dtype, device=device)
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
            setattr(module, name, nn.Parameter(weight))
    model.to(device)  # moves the buffers; in these models none is of a floating type
