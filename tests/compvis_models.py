"""Tiny models of CompVis' code, with random weights: the UNet, its twin in diffusers, and a whole `LatentDiffusion`.

The tests that import this are skipped, with one line, where that code is not installed. `.ci/run` installs it.
"""

from __future__ import annotations

import sys
import types
from functools import cache
from typing import Any

import pytest
import torch
from devices import device
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor, nn

_MISSING = "CompVis' code is not installed: pip install --no-deps stable-diffusion-sdkit==2.1.5"
openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason=_MISSING)
RUNGS = {"sd": 12, "sdxl": 9}
TEXT = 8  # width of the text
_SHAPES = {
    "sd": {"channel_mult": (1, 1, 2, 2), "attention_resolutions": (1, 2, 4), "num_heads": 4},
    "sdxl": {
        "channel_mult": (1, 1, 2),
        "attention_resolutions": (2, 4),
        "num_head_channels": 8,
        "use_linear_in_transformer": True,
        "legacy": False,
    },
}
_DIFFUSERS = {
    "sd": {
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 4,
    },
    "sdxl": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (4, 4, 8),
        "use_linear_projection": True,
    },
}


def unet_config(kind: str = "sd", **overrides: Any) -> dict[str, Any]:
    """Arguments of a `UNetModel` in the shape of SD 1.x (12 rungs) or SDXL (9 rungs)."""
    config = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": 2,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": TEXT,
        "use_checkpoint": True,  # as in the published configurations
    }
    return config | _SHAPES[kind] | overrides


def randomised(unet: nn.Module, seed: int = 0) -> nn.Module:
    """Give a UNet random weights, also where a new one has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in unet.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        scale = (1 / weight[0].numel()) ** 0.5 if weight.dim() > 1 else 0.1
        weight.data = noise * scale + (1.0 if weight.dim() == 1 and name.endswith("weight") else 0.0)
    return unet.eval().to(device())


def compvis_unet(kind: str = "sd", seed: int = 0, **overrides: Any) -> nn.Module:
    """A `UNetModel` with random weights."""
    return randomised(openaimodel.UNetModel(**unet_config(kind, **overrides)), seed)


def diffusers_twin(unet: nn.Module, kind: str = "sd") -> UNet2DConditionModel:
    """The UNet of diffusers with the same weights, by diffusers' own converter."""
    config = {"sample_size": 8, "norm_num_groups": 32, "cross_attention_dim": TEXT, **_DIFFUSERS[kind]}
    twin = UNet2DConditionModel(**config)
    named = {f"model.diffusion_model.{name}": weight for name, weight in unet.state_dict().items()}
    twin.load_state_dict(
        convert_ldm_unet_checkpoint(named, {**config, "layers_per_block": 2, "class_embed_type": None})
    )
    return twin.eval().to(device())


def compvis_inputs(batch: int = 2, size: tuple[int, int] = (8, 8), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents (batch, 4, h, w) and text states (batch, 5, 8)."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(batch, 4, *size, generator=generator), torch.randn(batch, 5, TEXT, generator=generator)
    return draws[0].to(device()), draws[1].to(device())


@cache
def ddpm() -> types.ModuleType:
    """Import the module of `LatentDiffusion`, with a stand-in for the three names that it takes of Lightning."""

    class LightningModule(nn.Module):
        @property
        def device(self) -> torch.device:
            return next(self.parameters()).device

    names = ("pytorch_lightning", "pytorch_lightning.utilities", "pytorch_lightning.utilities.distributed")
    lightning, utilities, distributed = modules = [types.ModuleType(name) for name in names]
    lightning.LightningModule, lightning.utilities, utilities.distributed = LightningModule, utilities, distributed
    distributed.rank_zero_only = lambda function: function
    with pytest.MonkeyPatch.context() as patch:
        for name, module in zip(names, modules, strict=True):
            patch.setitem(sys.modules, name, module)
        import ldm.models.diffusion.ddpm

    return ldm.models.diffusion.ddpm


def latent_diffusion(kind: str = "sd", conditioning_key: str = "crossattn", **overrides: Any) -> nn.Module:
    """A `LatentDiffusion` with Stable Diffusion's noise schedule and a tiny UNet."""
    model = ddpm().LatentDiffusion(
        first_stage_config={"target": "ldm.models.autoencoder.IdentityFirstStage"},
        cond_stage_config={"target": "torch.nn.Identity"},
        conditioning_key=conditioning_key,
        unet_config={
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": unet_config(kind, **overrides),
        },
        linear_start=0.00085,
        linear_end=0.012,
        timesteps=1000,
        image_size=8,
        channels=4,
        use_ema=False,
    )
    randomised(model.model.diffusion_model)
    return model.eval().to(device())
