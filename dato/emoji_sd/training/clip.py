"""Stage `clip`: contrastive training of both towers, all names and colours (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dato.emoji_sd.pictures import SIZE, paste
from dato.emoji_sd.training.augment import jitter, noise
from dato.emoji_sd.training.loop import run_stage
from dato.emoji_sd.training.tokenizer import LENGTH
from dato.emoji_sd.training.workspace import Workspace

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def train(work: Workspace) -> None:
    """Train the CLIP from random weights, or from the run's initial model."""
    settings = work.recipe.clip
    run_stage(work, "clip", settings, lambda: _build(work), lambda model: _loss(work, model), saver(work))


def _build(work: Workspace) -> CLIPModel:
    if initial := work.initial("clip"):
        return CLIPModel.from_pretrained(initial).float()
    sizes, tokenizer = work.recipe.clip, CLIPTokenizer.from_pretrained(work.find("tokenizer"))
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_heads,
        "projection_dim": sizes.projection,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = {
        "image_size": SIZE,
        "patch_size": sizes.patch,
        "hidden_size": sizes.image_width,
        "intermediate_size": 4 * sizes.image_width,
        "num_hidden_layers": sizes.image_layers,
        "num_attention_heads": sizes.image_heads,
        "projection_dim": sizes.projection,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=sizes.projection))


def _loss(work: Workspace, model: CLIPModel) -> Callable[[Generator], Tensor]:
    settings, pictures = work.recipe.clip, work.pictures
    ids = tokens(work, pictures.captions()).to(work.device)
    known = pictures.known(trained_only=False)
    from_known = round(settings.known_share * settings.fit.batch)

    def loss(generator: Generator) -> Tensor:
        first = known[torch.randperm(len(known), generator=generator)[:from_known]]
        others = torch.randperm(len(ids), generator=generator)
        # No caption may be in a batch twice: it would count as a wrong answer for itself.
        chosen = torch.cat((first, others[~torch.isin(others, first)]))[: settings.fit.batch]
        images = noise(augmented(work, chosen, generator), generator)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        return model(input_ids=ids[chosen.to(ids.device)], pixel_values=normalise(images), return_loss=True).loss

    return loss


def augmented(work: Workspace, captions: Tensor, generator: Generator) -> Tensor:
    """Return the pictures (B, 3, 64, 64) in [0, 1] of captions, mirrored, moved and scaled at random."""
    mirrored = torch.rand(len(captions), generator=generator) < 0.5
    cutouts, colours = work.pictures.parts(captions, mirrored)
    return paste(jitter(cutouts, generator), colours)


def normalise(images: Tensor) -> Tensor:
    """Return pictures in [0, 1] as the image tower takes them."""
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def tokens(work: Workspace, captions: list[str]) -> Tensor:
    """Return token ids (B, 16), padded."""
    tokenizer = CLIPTokenizer.from_pretrained(work.find("tokenizer"))
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def saver(work: Workspace) -> Callable[[CLIPModel, Path], None]:
    """Return a function that writes a whole CLIP folder: model, tokenizer and settings of the image processor."""
    tokenizer = work.find("tokenizer")

    def save(model: CLIPModel, folder: Path) -> None:
        model.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n", encoding="utf-8")

    return save


PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": SIZE},
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
}
