"""Generate images so that every schedule gets the same prompts and the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dato.errors import DatoError
from dato.utils.timing import Stopwatch, forward_times

SEEDS = 2**64  # torch takes seeds below this


@dataclass(frozen=True)
class Sampling:
    """How images are generated, apart from prompts and schedule.

    Attributes:
        steps: The number of sampler steps.
        guidance_scale: The scale of classifier-free guidance. 1 switches it off.
        height: Pixels. None: the model's own.
        width: Pixels. None: the model's own.
        seed: Image i starts from the noise of seed + i.
        batch_size: Images per generation.
        pipe_kwargs: Further keyword arguments of every call of the pipeline, such as a ControlNet's `image`.

    Raises:
        DatoError: if height or width is not a multiple of 8, or the seed is not below 2**64.
    """

    steps: int = 20
    guidance_scale: float = 3.0
    height: int | None = None
    width: int | None = None
    seed: int = 0
    batch_size: int = 2
    pipe_kwargs: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            # diffusers' pipelines ask for multiples of 8, whatever the VAE's factor is.
            if (getattr(self, name) or 8) % 8:
                raise DatoError(f"`{name}` must be a multiple of 8, not {getattr(self, name)}")
        self.check_seeds(1)

    def check_seeds(self, images: int) -> None:
        """Raise DatoError if the seed of one of so many images is too large."""
        if self.seed + images > SEEDS:
            raise DatoError(f"`seed` {self.seed} is too large: give at most {SEEDS - images}")


@dataclass(frozen=True)
class Generated:
    """The images and times of one pass over the prompts.

    Attributes:
        images: (n, 3, H, W) float32 in [0, 1] on the CPU.
        latency_ms: Milliseconds per image for each batch, end to end: text encoder, sampler, VAE.
        unet_ms: Milliseconds per image for each batch, in the UNet's calls.
        loop_ms: Milliseconds per image for each batch, from the start of the first UNet call to the end of the last.
            It includes the sampler, and neither text encoder nor VAE.
    """

    images: Tensor
    latency_ms: list[float]
    unet_ms: list[float]
    loop_ms: list[float]


def generate(pipe: DiffusionPipeline, prompts: Sequence[str], sampling: Sampling, decode: bool = True) -> Generated:
    """Generate one image for each prompt. The same sampling gives image i the same noise in every pass.

    Args:
        pipe: The pipeline, patched or not.
        prompts: n.
        sampling: Steps, guidance, size, seed and batch size.
        decode: Whether the VAE runs. If not, the images are latents (n, 4, h, w).

    Raises:
        DatoError: if the seed of an image is too large.
    """
    sampling.check_seeds(len(prompts))
    whole = Stopwatch(pipe.unet.device)
    images, sizes, unet_ms, loop_ms = [], [], [], []
    with forward_times(pipe.unet) as calls:
        for start in range(0, len(prompts), sampling.batch_size):
            batch = list(prompts[start : start + sampling.batch_size])
            # Draw the noise on the CPU, so that it is the same on every device.
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
                **sampling.pipe_kwargs,
            ).images
            whole.stop()
            loop_ms.append(calls.span() / len(batch))
            unet_ms.append(sum(calls.read()) / len(batch))
            sizes.append(len(batch))
            images.append(result.float().cpu())
    latency = [ms / size for ms, size in zip(whole.read(), sizes, strict=True)]
    return Generated(torch.cat(images), latency, unet_ms, loop_ms)
