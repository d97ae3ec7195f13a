"""Stage `clip-image`: train the image tower to judge the UNet's images. The text tower stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor
from transformers import CLIPModel

from dato.cli.console import progress
from dato.emoji_sd.training import vae
from dato.emoji_sd.training.augment import degrade, noise
from dato.emoji_sd.training.clip import augmented, normalise, saver
from dato.emoji_sd.training.folders import cached
from dato.emoji_sd.training.loop import run_stage
from dato.emoji_sd.training.unet import scaled_latents, scheduler, text_states
from dato.emoji_sd.training.workspace import Workspace
from dato.metrics.clip_model import Clip


def train(work: Workspace) -> None:
    """Fine-tune the image tower of stage `clip`, or of the run's initial model."""
    settings = work.recipe.clip_image
    run_stage(work, "clip-image", settings, lambda: _build(work), lambda model: _loss(work, model), saver(work))


def _build(work: Workspace) -> CLIPModel:
    model = CLIPModel.from_pretrained(work.find("clip")).float().requires_grad_(False)
    model.vision_model.requires_grad_(True)
    model.visual_projection.requires_grad_(True)
    return model


def _loss(work: Workspace, model: CLIPModel) -> Callable[[Generator], Tensor]:
    settings = work.recipe.clip_image
    texts = Clip(work.find("clip"), work.device).text_features(work.pictures.captions())
    drawn = cached(work.unfinished("clip-image.drawn.safetensors"), lambda: _draw(work))
    from_drawn = round(settings.drawn_share * settings.fit.batch)

    def loss(generator: Generator) -> Tensor:
        real = torch.randint(len(texts), (settings.fit.batch - from_drawn,), generator=generator)
        rows = torch.randint(len(drawn["images"]), (from_drawn,), generator=generator)
        images = drawn["images"][rows].to(work.device).float() / 255
        images = torch.cat((augmented(work, real, generator), images))
        images = noise(degrade(images, generator), generator)
        features = model.get_image_features(normalise(images))
        # transformers 5 returns an output object, earlier versions return the embeddings.
        features = F.normalize(getattr(features, "pooler_output", features).float(), dim=1)
        target = torch.cat((real, drawn["captions"][rows])).to(work.device)
        return F.cross_entropy(model.logit_scale.exp() * features @ texts.T, target)

    return loss


@torch.no_grad()
def _draw(work: Workspace) -> dict[str, Tensor]:
    """Make pictures of the known names on all colours: autoencoded, and denoised in one step from random noise levels.

    Returns:
        `images` (N, 3, 64, 64) uint8, and `captions` (N,), indices into the pictures' captions.
    """
    settings = work.recipe.clip_image
    decoder = vae.load(work)
    unet = UNet2DConditionModel.from_pretrained(work.find("unet")).float().eval()
    unet = unet.to(work.device, memory_format=torch.channels_last)
    noising = scheduler()
    generator = torch.Generator().manual_seed(work.seed)
    known = work.pictures.known(trained_only=False)
    captions = work.pictures.captions()
    texts = text_states(work, [captions[index] for index in known]).to(work.device)
    latents = scaled_latents(work, known, work.unfinished("clip-image.latents.safetensors"))

    def denoised(rows: Tensor) -> Tensor:
        times = torch.randint(*settings.noise_levels, (len(rows),), generator=generator)
        clean = latents[rows]
        draw = torch.randn(clean.shape, generator=generator)
        noisy = noising.add_noise(clean, draw, times)
        with work.autocast():
            text = texts[(rows % len(known)).to(work.device)]
            predicted = unet(noisy.to(work.device), times.to(work.device), text).sample.float().cpu()
        signal = noising.alphas_cumprod[times].view(-1, 1, 1, 1)
        return (noisy - (1 - signal).sqrt() * predicted) / signal.sqrt()

    drawn = []
    with progress() as bar:
        for draw in bar.track(range(1 + settings.draws), description="clip-image pictures"):
            for rows in torch.arange(len(latents)).split(vae.AT_ONCE):
                chosen = denoised(rows) if draw else latents[rows]
                images = vae.decode(decoder, work, chosen.to(work.device) / decoder.config.scaling_factor)
                drawn.append((images * 255).round().to(torch.uint8).cpu())
    return {"images": torch.cat(drawn), "captions": known.repeat(2 * (1 + settings.draws))}
