"""Every kind of pipeline that dato supports, tiny and with random weights, made of diffusers' own classes.

`PIPELINES[name]()` gives a new one with what it has to be called with. The VAEs halve, so latents of 16 x 16 are images
of 32 x 32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import diffusers
import torch
from conftest import tiny_unet
from devices import device
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    LCMScheduler,
    PNDMScheduler,
    T2IAdapter,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from dato import emoji_sd

SIZE = 32
_FLAT = {"layers_per_block": 1}  # 8 rungs of Stable Diffusion's 12, 6 of SDXL's 9: half the time
PROMPT = "red apple on a blue background"


class Tiny(NamedTuple):
    """A pipeline, and what it is called with."""

    pipe: DiffusionPipeline
    kwargs: dict[str, Any]


@cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(emoji_sd.PIPE / "tokenizer", model_max_length=16)


def _text_encoder(kind: type = CLIPTextModel) -> torch.nn.Module:
    tokenizer = _tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=16,
        projection_dim=8,
        **special,
    )
    torch.manual_seed(1)
    return kind(config).eval()


def _vae() -> AutoencoderKL:
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=SIZE, **blocks).eval()


def _scheduler(**options: Any) -> PNDMScheduler:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1, **options)


def _image_encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def picture(size: int = SIZE, channels: int = 3, seed: int = 3) -> torch.Tensor:
    """(1, channels, size, size) in [0, 1]."""
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(seed))


def _mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    return mask


def _sd(pipeline: str = "StableDiffusionPipeline", unet: dict[str, Any] | None = None, **parts: Any):
    defaults = {
        "unet": tiny_unet("sd", **(_FLAT | (unet or {}))),
        "vae": _vae(),
        "text_encoder": _text_encoder(),
        "tokenizer": _tokenizer(),
        "scheduler": _scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return _made(pipeline, defaults | parts)


def _sdxl(pipeline: str = "StableDiffusionXLPipeline", unet: dict[str, Any] | None = None, **parts: Any):
    time_ids = 6
    size = {"cross_attention_dim": 16, "addition_time_embed_dim": 8}
    size |= {"projection_class_embeddings_input_dim": 8 + time_ids * 8, "addition_embed_type": "text_time"}
    defaults = {
        "unet": tiny_unet("sdxl", **(_FLAT | size | (unet or {}))),
        "vae": _vae(),
        "text_encoder": _text_encoder(),
        "text_encoder_2": _text_encoder(CLIPTextModelWithProjection),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(),
        "scheduler": _scheduler(),
    }
    return _made(pipeline, defaults | parts)


def _made(pipeline: str, parts: dict[str, Any]) -> DiffusionPipeline:
    kind = getattr(diffusers, pipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = kind(**{name: part for name, part in parts.items() if name in _parameters(kind)})
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device())


@cache
def _parameters(kind: type) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(kind.__init__).parameters)


def _controlnet(unet: UNet2DConditionModel, seed: int = 4) -> ControlNetModel:
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)).eval()
    for convolution in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(convolution.weight, std=0.3)  # they begin at zero, where nothing would be tested
    return net


def _controlled(base: Callable[..., DiffusionPipeline], pipeline: str, count: int = 1) -> DiffusionPipeline:
    nets = [_controlnet(base().unet, seed=4 + i) for i in range(count)]
    return base(pipeline, controlnet=nets[0] if count == 1 else nets)


def _adapter(kind: str, downscale: int) -> T2IAdapter:
    torch.manual_seed(6)
    channels = (8, 8, 16, 16)
    return T2IAdapter(channels=channels, num_res_blocks=1, downscale_factor=downscale, adapter_type=kind).eval()


def _with_ip_adapter(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Load an image prompt's projections (Ye et al., IP-Adapter, 2023) as a published file has them."""
    torch.manual_seed(7)
    unet, weights = pipe.unet, {}
    width = unet.config.cross_attention_dim
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in ("k", "v"):
                weights[f"{number}.to_{kind}_ip.weight"] = torch.randn(inner, width) * width**-0.5
    projection = {
        "proj.weight": torch.randn(4 * width, 8) * 8**-0.5,
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    # An adapter's keys count attention layers, self-attention included, from 1.
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": _by_key(unet, weights)}])
    pipe.set_ip_adapter_scale(0.7)
    return pipe


def _by_key(unet: UNet2DConditionModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    key, named = 1, {}
    for number, name in enumerate(unet.attn_processors):
        if not name.endswith("attn1.processor"):
            for kind in ("k", "v"):
                named[f"{key}.to_{kind}_ip.weight"] = weights[f"{number}.to_{kind}_ip.weight"]
            key += 2
    return named


def _refiner() -> DiffusionPipeline:
    ids = {"projection_class_embeddings_input_dim": 8 + 5 * 8, "cross_attention_dim": 8}
    parts = {"text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True}
    return _sdxl("StableDiffusionXLImg2ImgPipeline", unet=ids, **parts)


_IMAGE = {"image": picture(), "strength": 0.8}
_INPAINT = {"image": picture(), "mask_image": _mask(), "strength": 0.8, "height": SIZE, "width": SIZE}
_WHOLE = {**_INPAINT, "strength": 1.0}
_IP = {"ip_adapter_image_embeds": [torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(8))]}
_BOXES = {
    "gligen_phrases": ["apple"],
    "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]],
    "gligen_scheduled_sampling_beta": 0.5,
    "height": SIZE,
    "width": SIZE,
}
_EDIT = {"image": picture(), "image_guidance_scale": 1.5}
_CONTROL_IMAGE = {**_IMAGE, "control_image": picture(seed=9)}
_CONTROL_INPAINT = {**_INPAINT, "control_image": picture(seed=9)}

# name -> (pipeline, arguments of its call)
_MADE: dict[str, tuple[Callable[[], DiffusionPipeline], dict[str, Any]]] = {
    "SD 1.x": (_sd, {}),
    "SD 1.x img2img": (lambda: _sd("StableDiffusionImg2ImgPipeline"), _IMAGE),
    "SD 1.x inpaint, 4 channels": (lambda: _sd("StableDiffusionInpaintPipeline"), _INPAINT),
    "SD 1.x inpaint, 9 channels": (lambda: _sd("StableDiffusionInpaintPipeline", unet={"in_channels": 9}), _WHOLE),
    "SD 2.x (v-prediction)": (
        lambda: _sd(
            unet={"use_linear_projection": True, "attention_head_dim": (2, 4, 4, 8)},
            scheduler=_scheduler(prediction_type="v_prediction"),
        ),
        {},
    ),
    "SDXL": (_sdxl, {}),
    "SDXL refiner": (_refiner, _IMAGE),
    "SDXL img2img": (lambda: _sdxl("StableDiffusionXLImg2ImgPipeline"), _IMAGE),
    "SDXL inpaint, 4 channels": (lambda: _sdxl("StableDiffusionXLInpaintPipeline"), _INPAINT),
    "SDXL inpaint, 9 channels": (lambda: _sdxl("StableDiffusionXLInpaintPipeline", unet={"in_channels": 9}), _INPAINT),
    "ControlNet": (lambda: _controlled(_sd, "StableDiffusionControlNetPipeline"), {"image": picture()}),
    "ControlNet, two": (
        lambda: _controlled(_sd, "StableDiffusionControlNetPipeline", 2),
        {"image": [picture(), picture(seed=9)], "controlnet_conditioning_scale": [0.8, 0.5]},
    ),
    "ControlNet img2img": (lambda: _controlled(_sd, "StableDiffusionControlNetImg2ImgPipeline"), _CONTROL_IMAGE),
    "ControlNet inpaint": (lambda: _controlled(_sd, "StableDiffusionControlNetInpaintPipeline"), _CONTROL_INPAINT),
    "SDXL ControlNet": (lambda: _controlled(_sdxl, "StableDiffusionXLControlNetPipeline"), {"image": picture()}),
    "SDXL ControlNet, two": (
        lambda: _controlled(_sdxl, "StableDiffusionXLControlNetPipeline", 2),
        {"image": [picture(), picture(seed=9)], "controlnet_conditioning_scale": [0.8, 0.5]},
    ),
    "SDXL ControlNet img2img": (
        lambda: _controlled(_sdxl, "StableDiffusionXLControlNetImg2ImgPipeline"),
        _CONTROL_IMAGE,
    ),
    "SDXL ControlNet inpaint": (
        lambda: _controlled(_sdxl, "StableDiffusionXLControlNetInpaintPipeline"),
        _CONTROL_INPAINT,
    ),
    "T2I-Adapter": (
        lambda: _sd("StableDiffusionAdapterPipeline", adapter=_adapter("full_adapter", downscale=2)),
        {"image": picture()},
    ),
    "SDXL T2I-Adapter": (
        lambda: _sdxl("StableDiffusionXLAdapterPipeline", adapter=_adapter("full_adapter_xl", downscale=4)),
        {"image": picture()},
    ),
    "IP-Adapter": (lambda: _with_ip_adapter(_sd()), _IP),
    "SDXL IP-Adapter": (lambda: _with_ip_adapter(_sdxl()), _IP),
    "GLIGEN": (lambda: _sd("StableDiffusionGLIGENPipeline", unet={"attention_type": "gated"}), _BOXES),
    "InstructPix2Pix": (lambda: _sd("StableDiffusionInstructPix2PixPipeline", unet={"in_channels": 8}), _EDIT),
    "SDXL InstructPix2Pix": (
        lambda: _sdxl("StableDiffusionXLInstructPix2PixPipeline", unet={"in_channels": 8}),
        _EDIT,
    ),
    "LCM": (
        lambda: _sd(
            "LatentConsistencyModelPipeline", unet={"time_cond_proj_dim": 8}, scheduler=LCMScheduler(clip_sample=False)
        ),
        {},
    ),
    "SD upscaler": (
        lambda: _sd(
            "StableDiffusionUpscalePipeline",
            unet={"in_channels": 7, "num_class_embeds": 350},
            low_res_scheduler=diffusers.DDPMScheduler(),
        ),
        {"image": picture(16), "noise_level": 20},
    ),
    "Perturbed-attention guidance": (lambda: _sd("StableDiffusionPAGPipeline", pag_applied_layers=["mid"]), {}),
}
PIPELINES = tuple(_MADE)
# Pipelines that would draw at their models' own size, which is another.
SIZED = (
    "SD 1.x",
    "SD 2.x (v-prediction)",
    "SDXL",
    "LCM",
    "IP-Adapter",
    "SDXL IP-Adapter",
    "Perturbed-attention guidance",
)


def tiny(name: str) -> Tiny:
    """A new pipeline of that name; the same weights every time."""
    make, kwargs = _MADE[name]
    size = {"height": SIZE, "width": SIZE} if name in SIZED else {}
    return Tiny(make(), {"prompt": PROMPT, "guidance_scale": 3.0, **size, **kwargs})


def sample(pipe: DiffusionPipeline, kwargs: dict[str, Any], steps: int = 4, seed: int = 0, **more: Any) -> torch.Tensor:
    """The latents of a run; the same arguments give the same noise."""
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        arguments = {"num_inference_steps": steps, "generator": generator, "output_type": "latent", **kwargs, **more}
        return pipe(**arguments).images
