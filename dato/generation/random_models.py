"""Stable Diffusion 1.5, 2.1 and XL with random weights: how long a call takes does not depend on what the weights are.

The configurations are those of the published models, so the parts have the published numbers of parameters; only the
tokenizer is the embedded model's, filled up to their 77 tokens. Images are noise: these are for measuring time and
memory where the weights cannot be had.
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

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_CLIP_L |= {"projection_dim": 768}
_OPENCLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23}
_OPENCLIP_H |= {"projection_dim": 512, "hidden_act": "gelu"}
_OPENCLIP_BIGG = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
_OPENCLIP_BIGG |= {"projection_dim": 1280, "hidden_act": "gelu"}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_PLMS = {**_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}

# What differs from the classes' defaults, by model and part. The published 2.1 comes with DDIM; it has PLMS here, as
# 1.5 has, so that its generations make as many calls.
_CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15-random": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768},
        "vae": _VAE,
        "text_encoder": _CLIP_L,
        "scheduler": _PLMS,
    },
    "sd21-random": {
        "unet": {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        "vae": {**_VAE, "sample_size": 768},
        "text_encoder": _OPENCLIP_H,
        "scheduler": {**_PLMS, "prediction_type": "v_prediction"},
    },
    "sdxl-random": {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPENCLIP_BIGG,
        "scheduler": {**_BETAS, "timestep_spacing": "leading", "steps_offset": 1},
    },
}
RANDOM_MODELS = tuple(_CONFIGS)


def text_width(name: str) -> int:
    """Features of the text states that the random model of that name attends to."""
    return _CONFIGS[name]["unet"]["cross_attention_dim"]


def random_pipeline(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> DiffusionPipeline:
    """A pipeline of a published configuration with random weights, made in place: nothing is loaded or downloaded.

    Args:
        name: One of `RANDOM_MODELS`.
        device: Where to make the weights; "meta" makes none.
        dtype: What to compute in.
        seed: The same seed gives the same weights on the same device, in the same dtype.
        overrides: By part ("unet", "vae", "text_encoder", ...) entries of its configuration that are to be others.

    Raises:
        DatoError: if the name is unknown.
    """
    if name not in _CONFIGS:
        raise DatoError(f"unknown random model {name!r}; known are {', '.join(RANDOM_MODELS)}")
    tokenizer = CLIPTokenizer.from_pretrained(emoji_sd.PIPE / "tokenizer", model_max_length=77)
    configs = {part: {**config, **(overrides or {}).get(part, {})} for part, config in _CONFIGS[name].items()}
    scheduler = configs.pop("scheduler")

    with init_empty_weights(include_buffers=False):  # parameters of no memory, and no slow initialisation of them
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
    # The pooled state is taken at the end token, which is another one than in the published vocabulary of 49408.
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    return kind(CLIPTextConfig(**(special | config)))


def _fill(model: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator | None) -> None:
    """Give every parameter memory and a value: biases 0, norms 1, and weights that keep their input's variance."""
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
    model.to(device)  # buffers; none of these models has any of a floating type
