"""Tiny models with random weights in ComfyUI's classes, and their twins in diffusers: for check_comfyui.py.

`comfy` is imported within the functions, after check_comfyui.py has put the checkout on the path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TEXT, POOLED, SIZES = 16, 1280, 256  # widths: of the text, of the pooled text, of the embedding of each size
_COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "context_dim": TEXT,
    "legacy": False,
    "dtype": torch.float32,
}
_UNETS = {
    "SD 1.5": {
        "channel_mult": [1, 1, 2, 2],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    },
    "SDXL": {
        "channel_mult": [1, 1, 2],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_middle": 2,
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": POOLED + 6 * SIZES,
    },
}
_HEADS = {"SD 1.5": {"num_heads": 8, "num_head_channels": -1}, "SDXL": {"num_heads": -1, "num_head_channels": 8}}
_TWINS = {
    "SD 1.5": {
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 8,
    },
    "SDXL": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (4, 4, 8),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZES,
        "projection_class_embeddings_input_dim": POOLED + 6 * SIZES,
    },
}


class TinyModel(NamedTuple):
    """A tiny model.

    Attributes:
        name: "SD 1.5" or "SDXL".
        patcher: ComfyUI's model.
        positive: Conditioning.
        negative: Conditioning.
    """

    name: str
    patcher: Any
    positive: list
    negative: list


def tiny_model(name: str, folder: Path) -> TinyModel:
    """Write a checkpoint with random weights into a folder, and load it into ComfyUI's class."""
    import comfy.model_patcher
    import comfy.supported_models

    config = {"SD 1.5": comfy.supported_models.SD15, "SDXL": comfy.supported_models.SDXL}[name](_COMMON | _UNETS[name])
    config.unet_config |= _HEADS[name]
    model = config.get_model({}, "")
    file = folder / f"{name.replace(' ', '-')}.safetensors"
    save_file({f"model.diffusion_model.{k}": v for k, v in random_weights(model.diffusion_model).items()}, file)
    model.load_model_weights(load_file(file), "model.diffusion_model.")
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)
    return TinyModel(name, patcher, conditioning(1), conditioning(2))


def random_weights(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights for a module, also where a new one has zeros."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, weight in module.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        scale = (1 / weight[0].numel()) ** 0.5 if weight.dim() > 1 else 0.1
        weights[name] = noise * scale + (1.0 if weight.dim() == 1 and name.endswith("weight") else 0.0)
    return weights


def conditioning(seed: int, **more: Any) -> list:
    """Return random conditioning, as ComfyUI's text encoders return it."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 77, TEXT, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, POOLED, generator=generator), **more}]]


def twin_of(model: TinyModel) -> UNet2DConditionModel:
    """Return diffusers' UNet with the weights that ComfyUI's has now, by diffusers' own converter."""
    name, unet = model.name, model.patcher.model.diffusion_model
    config = {"sample_size": 16, "norm_num_groups": 32, "cross_attention_dim": TEXT, **_TWINS[name]}
    twin = UNet2DConditionModel(**config)
    named = {f"model.diffusion_model.{key}": weight.detach().clone() for key, weight in unet.state_dict().items()}
    converted = convert_ldm_unet_checkpoint(named, {**twin.config, "layers_per_block": 2, "class_embed_type": None})
    twin.load_state_dict(converted)
    return twin.eval()


def run_twin(twin: UNet2DConditionModel) -> Callable[..., Tensor]:
    """Return a wrapper for ComfyUI's UNet that runs diffusers' in its place."""

    def wrapper(executor: Any, x: Tensor, timesteps: Tensor, context: Tensor, y: Any, control: Any, *_: Any) -> Tensor:
        more: dict[str, Any] = {}
        if y is not None:
            # ComfyUI gives the sizes as their embeddings. diffusers embeds them again, so they are embedded here.
            h, w = (length * 8 for length in x.shape[-2:])
            sizes = torch.tensor([[h, w, 0, 0, h, w]], dtype=torch.float32)
            more["added_cond_kwargs"] = {"text_embeds": y[:, :POOLED], "time_ids": sizes.expand(len(x), -1)}
        if control:
            more["down_block_additional_residuals"] = [one.clone() for one in control["output"]]
            more["mid_block_additional_residual"] = control["middle"][0].clone()
        return twin(x, timesteps, context, **more).sample

    return wrapper


def tiny_controlnet(model: TinyModel) -> Any:
    """Return a ControlNet of ComfyUI with random weights."""
    import comfy.cldm.cldm
    import comfy.controlnet

    config = _COMMON | _UNETS[model.name] | _HEADS[model.name]
    drop = ("image_size", "out_channels", "transformer_depth_output")
    config = {key: value for key, value in config.items() if key not in drop}
    net = comfy.cldm.cldm.ControlNet(image_size=32, hint_channels=3, **config)
    net.load_state_dict({name: weight * 0.5 for name, weight in random_weights(net, 7).items()})
    cpu = torch.device("cpu")
    return comfy.controlnet.ControlNet(net.eval(), load_device=cpu)
