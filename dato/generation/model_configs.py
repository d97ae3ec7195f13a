"""The configurations of the published Stable Diffusion 1.5, 2.1 and XL, for models with random weights."""

from __future__ import annotations

from typing import Any

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

# By model and part, what differs from the defaults of diffusers' and transformers' classes. The published 2.1 comes
# with DDIM. Here it has PLMS, as 1.5 has, so that its generations make as many calls.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
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
RANDOM_MODELS = tuple(CONFIGS)


def text_width(name: str) -> int:
    """Return how many features the text states have that a random model attends to."""
    return CONFIGS[name]["unet"]["cross_attention_dim"]
