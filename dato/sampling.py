"""Loading pipelines and generating images so that every schedule sees the same prompts and the same noise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from dato import emoji_sd
from dato.checkpoints import is_single_file, load_single_file
from dato.errors import DatoError, first_line
from dato.files import read_text
from dato.random_models import RANDOM_MODELS, random_pipeline
from dato.samplers import set_scheduler
from dato.timing import Stopwatch, forward_times

EMBEDDED = "emoji-sd"


@dataclass(frozen=True)
class Sampling:
    """How images are generated, apart from prompts and schedule.

    Attributes:
        steps: Steps of the sampler.
        guidance_scale: Classifier-free guidance; 1 switches it off.
        height: Pixels; None: the model's own.
        width: Pixels; None: the model's own.
        seed: Image i starts from the noise of seed + i.
        batch_size: Images per generation.

    Raises:
        DatoError: if height or width is no multiple of 8.
    """

    steps: int = 20
    guidance_scale: float = 3.0
    height: int | None = None
    width: int | None = None
    seed: int = 0
    batch_size: int = 2

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            # Every diffusers pipeline of this kind asks for multiples of 8, whatever its VAE does.
            if (getattr(self, name) or 8) % 8:
                raise DatoError(f"{name} must be a multiple of 8, not {getattr(self, name)}")


@dataclass(frozen=True)
class Generated:
    """What one pass over the prompts gave.

    Attributes:
        images: (n, 3, H, W) float32 in [0, 1] on the CPU.
        latency_ms: Milliseconds per image for each batch, end to end: text encoder, sampler, VAE.
        unet_ms: Milliseconds per image for each batch, the UNet's calls alone.
        loop_ms: Milliseconds per image for each batch, from the first UNet call to the end of the last: with the
            sampler, without text encoder and VAE.
    """

    images: Tensor
    latency_ms: list[float]
    unet_ms: list[float]
    loop_ms: list[float]


def load_pipeline(
    model: str = EMBEDDED,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: str | None = None,
    config: str | None = None,
) -> DiffusionPipeline:
    """Load a text-to-image pipeline with a UNet.

    Args:
        model: "emoji-sd" for the embedded model; "sd15-random", "sd21-random" or "sdxl-random" for these models'
            configurations with random weights; else a folder or a hub id in diffusers' layout, or a .safetensors or
            .ckpt file with the whole model.
        device: Where to run.
        dtype: What to compute in.
        scheduler: A key of `dato.samplers.SAMPLERS`; None keeps the model's own.
        config: Of a file, the folder or hub id in diffusers' layout that says what its parts look like; None: that of
            SD 1.5, 2.1 or XL, from the hub.

    Raises:
        DatoError: if it cannot be loaded, or has no UNet, or has a configuration of its own and `config` is given.
    """
    if model not in (EMBEDDED, *RANDOM_MODELS) and is_single_file(model):
        pipe = load_single_file(model, dtype, config)
    elif config is not None:
        raise DatoError(f"--config is for a model in one file, and {model!r} is none: leave it out")
    else:
        pipe = random_pipeline(model, device=device, dtype=dtype) if model in RANDOM_MODELS else _stored(model, dtype)
    if not isinstance(getattr(pipe, "unet", None), UNet2DConditionModel):
        raise DatoError(f"{model!r} is a {type(pipe).__name__} without a UNet2DConditionModel; dato is for UNets")
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, scheduler)
    return pipe.to(device)


def _stored(model: str, dtype: torch.dtype) -> DiffusionPipeline:
    path = str(emoji_sd.PIPE) if model == EMBEDDED else model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `torch_dtype` got a second name
            return AutoPipelineForText2Image.from_pretrained(path, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DatoError(
            f"cannot load the model {model!r}: {reason} (give a folder or hub id in diffusers' layout, a file, or "
            f"{', '.join((EMBEDDED, *RANDOM_MODELS))})"
        ) from error


def generate(pipe: DiffusionPipeline, prompts: Sequence[str], sampling: Sampling, decode: bool = True) -> Generated:
    """Generate one image for each prompt; image i of every call with the same sampling starts from the same noise.

    Args:
        pipe: The pipeline, patched or not.
        prompts: n.
        sampling: How.
        decode: Off, the VAE does not run, and the images are latents (n, 4, h, w).
    """
    device = pipe.unet.device
    whole = Stopwatch(device)
    images, sizes, unet_ms, loop_ms = [], [], [], []
    with forward_times(pipe.unet) as calls:
        for start in range(0, len(prompts), sampling.batch_size):
            batch = list(prompts[start : start + sampling.batch_size])
            # The noise is drawn on the CPU, so that it is the same on every device.
            noise = [torch.Generator().manual_seed(sampling.seed + start + i) for i in range(len(batch))]
            whole.start()
            result = pipe(
                batch,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                height=sampling.height,
                width=sampling.width,
                generator=noise,
                output_type="pt" if decode else "latent",
            ).images
            whole.stop()
            loop_ms.append(calls.span() / len(batch))
            unet_ms.append(sum(calls.read()) / len(batch))
            sizes.append(len(batch))
            images.append(result.float().cpu())
    latency = [ms / size for ms, size in zip(whole.read(), sizes, strict=True)]
    return Generated(torch.cat(images), latency, unet_ms, loop_ms)


def read_prompts(source: str | Path | None, count: int | None, split: str = "search") -> list[str]:
    """The first `count` (None: all) prompts of a text file, one a line; of no file: a split of emoji-sd's.

    Raises:
        DatoError: if the file is missing or holds fewer prompts.
    """
    if source is None:
        prompts, where = emoji_sd.prompts(split), f"the embedded model's {split} split"
    else:
        prompts, where = [line.strip() for line in read_text(source).splitlines() if line.strip()], str(source)
    count = len(prompts) if count is None else count
    if not prompts:
        raise DatoError(f"{where} holds no prompts: write one a line")
    if not 1 <= count <= len(prompts):
        raise DatoError(f"{count} prompts are asked for and {where} has {len(prompts)}; change --images or --prompts")
    return prompts[:count]
