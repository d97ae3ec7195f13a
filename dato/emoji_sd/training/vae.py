"""Stage `vae`: the autoencoder, 64 x 64 pictures to 4 x 32 x 32 latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from dato.emoji_sd.pictures import SIZE
from dato.emoji_sd.training.loop import run_stage
from dato.emoji_sd.training.workspace import Workspace

AT_ONCE = 64  # pictures per forward pass without gradients


def train(work: Workspace) -> None:
    """Train the VAE from random weights, or from the run's initial model."""
    run_stage(work, "vae", work.recipe.vae, lambda: _build(work), lambda model: _loss(work, model), _saver(work))


def _build(work: Workspace) -> AutoencoderKL:
    if initial := work.initial("vae"):
        return AutoencoderKL.from_pretrained(initial).float()
    settings = work.recipe.vae
    levels = len(settings.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.widths,
        layers_per_block=1,
        latent_channels=settings.latents,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def _loss(work: Workspace, model: AutoencoderKL) -> Callable[[Generator], Tensor]:
    settings = work.recipe.vae
    known = work.pictures.known(trained_only=True)

    def loss(generator: Generator) -> Tensor:
        chosen = known[torch.randint(len(known), (settings.fit.batch,), generator=generator)]
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5
        images = _as_input(work.pictures.paste(chosen, mirrored))
        posterior = model.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        draw = torch.randn(mean.shape, generator=generator).to(mean.device)
        error = model.decode(mean + (0.5 * logvar).exp() * draw).sample.float() - images
        squares, l1 = error.square().mean(), error.abs().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return squares + settings.l1 * l1 + settings.gradient_l1 * edges + settings.kl * kl

    return loss


def _saver(work: Workspace) -> Callable[[AutoencoderKL, Path], None]:
    def save(model: AutoencoderKL, folder: Path) -> None:
        latents = encode(model, work, work.pictures.known(trained_only=True))
        # The scaled latents have a mean square of 1.
        model.register_to_config(scaling_factor=round(1 / latents.square().mean().sqrt().item(), 4))
        model.save_pretrained(folder)

    return save


def load(work: Workspace) -> AutoencoderKL:
    """Return the finished VAE, for use."""
    vae = AutoencoderKL.from_pretrained(work.find("vae")).float().requires_grad_(False).eval()
    return vae.to(work.device, memory_format=torch.channels_last)


@torch.no_grad()
def encode(vae: AutoencoderKL, work: Workspace, captions: Tensor) -> Tensor:
    """Return unscaled latents (2 B, 4, h, w) of the pictures of captions, then of their mirror images."""
    latents = []
    for mirrored in (False, True):
        for chosen in captions.split(AT_ONCE):
            with work.autocast():
                images = _as_input(work.pictures.paste(chosen, mirrored))
                latents.append(vae.encode(images).latent_dist.mean.float())
    return torch.cat(latents)


@torch.no_grad()
def decode(vae: AutoencoderKL, work: Workspace, latents: Tensor) -> Tensor:
    """Return pictures (B, 3, 64, 64) in [0, 1] of unscaled latents."""
    pictures = []
    for chosen in latents.split(AT_ONCE):
        with work.autocast():
            pictures.append(vae.decode(chosen).sample.float())
    return (torch.cat(pictures) / 2 + 0.5).clamp(0, 1)


def _as_input(images: Tensor) -> Tensor:
    return (images * 2 - 1).contiguous(memory_format=torch.channels_last)
