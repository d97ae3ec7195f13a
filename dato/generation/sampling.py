"""Generate images so that every schedule gets the same prompts and the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dato.errors import DatoError
from dato.unet.targets import latent_size
from dato.utils.timing import Stopwatch, forward_times

SEEDS = 2**64  # torch takes seeds below this
_IMAGES = ("image", "control_image", "mask_image")  # arguments of pipelines that size the images


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


def image_size(pipe: DiffusionPipeline, sampling: Sampling) -> tuple[int, int]:
    """Return (height, width) of the images in pixels: as given, else as a given image, else the model's own.

    Raises:
        DatoError: if one is not given and the model has none of its own.
    """
    factor, own = pipe.vae_scale_factor, latent_size(pipe.unet)
    images = [sampling.pipe_kwargs[name] for name in _IMAGES if name in sampling.pipe_kwargs]
    if images:
        own = tuple(pixels // factor for pixels in _size(images[0]))
    given = sampling.height, sampling.width
    if own is None and None in given:
        raise DatoError("give `height` and `width`: the configuration of this UNet has no sample size")
    height, width = (pixels or own[i] * factor for i, pixels in enumerate(given))
    return height, width


def _size(image: Any) -> tuple[int, int]:
    """Return (height, width) of an image as diffusers takes it, or of the first of several."""
    while isinstance(image, (list, tuple)):
        image = image[0]
    if not hasattr(image, "shape"):
        return image.height, image.width
    shape = image.shape if isinstance(image, Tensor) or image.ndim < 3 else image.shape[:-1]  # else colours come last
    return tuple(shape[-2:])


def generate(pipe: DiffusionPipeline, prompts: Sequence[str], sampling: Sampling, decode: bool = True) -> Generated:
    """Generate one image for each prompt. The same sampling gives image i the same noise in every pass.

    Args:
        pipe: The pipeline, patched or not.
        prompts: n.
        sampling: Steps, guidance, size, seed and batch size.
        decode: Whether the VAE runs. If not, the images are latents (n, 4, h, w).

    Raises:
        DatoError: if the seed of an image is too large, or no size is given and the model has none of its own.
    """
    sampling.check_seeds(len(prompts))
    whole = Stopwatch(pipe.unet.device)
    height, width = sampling.height, sampling.width
    if not set(_IMAGES) & set(sampling.pipe_kwargs):  # else a pipeline takes its image's size
        height, width = image_size(pipe, sampling)
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
                height=height,
                width=width,
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
