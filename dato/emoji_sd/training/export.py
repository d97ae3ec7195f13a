"""Stages `export` and `statistics`: write the finished model in the layout of `dato/emoji_sd`, in float16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save as safe_bytes
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from dato.emoji_sd.pictures import Pictures, splits
from dato.emoji_sd.training.clip import TOKENIZER_FILES, saver
from dato.emoji_sd.training.folders import whole_folder
from dato.emoji_sd.training.unet import scheduler
from dato.emoji_sd.training.workspace import Workspace
from dato.errors import DatoError
from dato.metrics.clip_model import Clip
from dato.utils.files import read_json, write_atomic

NAME = "emoji-sd"  # the folder of the exported model, in the run's folder
TRAINED = ("tokenizer", "clip", "vae", "unet", "clip-image")


def export(work: Workspace) -> None:
    """Write pipe/, clip/, prompts.json and training.json into `out`/emoji-sd.

    Raises:
        DatoError: if a part is missing, or the UNet was trained for another text tower or another VAE.
    """
    for stage in ("clip", "vae"):
        if work.done(stage) and not work.done("unet"):
            raise DatoError(f"stage '{stage}' was trained anew: the UNet does not fit it, train stage 'unet' too")
    tokenizer = work.find("tokenizer")
    clip = CLIPModel.from_pretrained(work.find("clip-image" if work.done("clip-image") else "clip"))
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work.find("vae")),
        text_encoder=CLIPTextModel.from_pretrained(work.find("clip")),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=UNet2DConditionModel.from_pretrained(work.find("unet")),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    logs = [read_json(work.folder(stage) / "log.json") for stage in TRAINED if work.done(stage)]
    with whole_folder(work.out / NAME) as folder:
        pipe.save_pretrained(folder / "pipe")
        for part in ("unet", "vae"):
            # diffusers writes the folder that it loaded a part from. It says nothing on another machine.
            config = read_json(folder / "pipe" / part / "config.json")
            config.pop("_name_or_path", None)
            _write_json(folder / "pipe" / part / "config.json", config)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / "pipe" / "tokenizer" / name)
        saver(work)(clip.half(), folder / "clip")
        _write_json(folder / "prompts.json", splits(work.pictures.names))
        _write_json(folder / "training.json", {"stages": logs})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def add_statistics(work: Workspace) -> None:
    """Write statistics.safetensors into `out`/emoji-sd, measured by the CLIP that was exported there."""
    folder = work.out / NAME
    if not (folder / "clip").is_dir():
        raise DatoError("stage 'export' comes first: add it to `stages`")
    measured = statistics(Clip(folder / "clip", work.device), work.pictures)
    write_atomic(folder / "statistics.safetensors", safe_bytes(measured))


def statistics(clip: Clip, pictures: Pictures) -> dict[str, Tensor]:
    """Return the real pictures' statistics for the Fréchet distance: learnt names, all colours, plain and mirrored.

    Returns:
        `mean` (F,) and `covariance` (F, F), float64, of the L2-normalised image features, and `count` (1,), their
        number. The covariance is the unbiased one, as in pytorch-fid.
    """
    known = pictures.known(trained_only=False)
    batches = [pictures.paste(rows, mirrored) for mirrored in (False, True) for rows in known.split(64)]
    features = torch.cat([clip.image_features(batch) for batch in batches]).double().cpu()
    return {"mean": features.mean(0), "covariance": features.T.cov(), "count": torch.tensor([len(features)])}
