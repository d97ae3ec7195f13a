"""Stage `unet`: epsilon prediction with the min-SNR weight (Hang et al. 2023, arXiv:2303.09556)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Generator, Tensor
from transformers import CLIPModel

from dato.emoji_sd.pictures import SIZE
from dato.emoji_sd.training import vae
from dato.emoji_sd.training.clip import tokens
from dato.emoji_sd.training.folders import cached
from dato.emoji_sd.training.loop import run_stage
from dato.emoji_sd.training.workspace import Workspace


def train(work: Workspace) -> None:
    """Train the UNet from random weights, or from the run's initial model."""
    run_stage(work, "unet", work.recipe.unet, lambda: _build(work), lambda model: _loss(work, model), _save)


def scheduler() -> PNDMScheduler:
    """Return Stable Diffusion's noise schedule and sampler."""
    pndm = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    # PNDM does not have this key. A DDIM scheduler made from this configuration has it, and clips latents without it.
    pndm.register_to_config(clip_sample=False)
    return pndm


def _build(work: Workspace) -> UNet2DConditionModel:
    if initial := work.initial("unet"):
        return UNet2DConditionModel.from_pretrained(initial).float()
    settings = work.recipe.unet
    levels = len(settings.widths)
    return UNet2DConditionModel(
        sample_size=SIZE // 2 ** (len(work.recipe.vae.widths) - 1),
        in_channels=work.recipe.vae.latents,
        out_channels=work.recipe.vae.latents,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        block_out_channels=settings.widths,
        layers_per_block=2,
        attention_head_dim=settings.heads,  # diffusers reads this as the number of heads
        cross_attention_dim=work.recipe.clip.text_width,
        norm_num_groups=8,
    )


def _loss(work: Workspace, model: UNet2DConditionModel) -> Callable[[Generator], Tensor]:
    settings = work.recipe.unet
    noising = scheduler()
    known = work.pictures.known(trained_only=True)
    latents = scaled_latents(work, known, work.unfinished("unet.latents.safetensors")).to(work.device)
    captions = work.pictures.captions()
    texts = text_states(work, [captions[index] for index in known] + [""]).to(work.device)
    count, steps = settings.fit.batch, noising.config.num_train_timesteps

    def loss(generator: Generator) -> Tensor:
        chosen = torch.randint(len(latents), (count,), generator=generator)
        times = torch.randint(steps, (count,), generator=generator)
        draw = torch.randn((count, *latents.shape[1:]), generator=generator).to(work.device)
        # There are two latents for each known caption, plain and mirrored. The last text is the empty one.
        text = torch.where(torch.rand(count, generator=generator) < settings.empty_captions, -1, chosen % len(known))
        snr = compute_snr(noising, times)
        weight = (snr.clamp(max=settings.min_snr) / snr).to(work.device)
        times = times.to(work.device)
        noisy = noising.add_noise(latents[chosen.to(work.device)], draw, times)
        predicted = model(
            noisy.contiguous(memory_format=torch.channels_last), times, texts[text.to(work.device)]
        ).sample.float()
        return ((predicted - draw).square().mean((1, 2, 3)) * weight).mean()

    return loss


def scaled_latents(work: Workspace, captions: Tensor, file: Path) -> Tensor:
    """Return latents (2 B, 4, h, w) at the UNet's scale, plain then mirrored. `file` keeps them during the stage."""

    def make() -> dict[str, Tensor]:
        encoder = vae.load(work)
        return {"latents": vae.encode(encoder, work, captions).cpu() * encoder.config.scaling_factor}

    return cached(file, make)["latents"]


@torch.no_grad()
def text_states(work: Workspace, captions: list[str]) -> Tensor:
    """Return the text tower's last hidden states (B, 16, width), which the UNet attends to."""
    model = CLIPModel.from_pretrained(work.find("clip")).float().eval()
    return model.text_model(tokens(work, captions)).last_hidden_state


def _save(model: UNet2DConditionModel, folder: Path) -> None:
    model.save_pretrained(folder)
