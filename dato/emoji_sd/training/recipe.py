"""All settings of the training, one dataclass for each stage.

The defaults are those of the model card. Three settings are not in it: the weight decay of the VAE and the UNet
(PyTorch's default), the clipping of the gradient's norm, and the number of denoised pictures for each latent.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fit:
    """The settings of the training loop."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    constant: float = 0.0  # share of the steps before the cosine decay begins
    clip_norm: float = 1.0
    ema: float | None = None


@dataclass(frozen=True)
class Clip:
    fit: Fit = Fit(steps=724, batch=128, learning_rate=1e-3, weight_decay=0.05)
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 4
    image_width: int = 160
    image_layers: int = 5
    image_heads: int = 5
    patch: int = 8
    projection: int = 128
    known_share: float = 0.25  # share of each batch that has names that the UNet learns


@dataclass(frozen=True)
class Vae:
    fit: Fit = Fit(steps=3163, batch=16, learning_rate=2e-3)
    widths: tuple[int, ...] = (32, 64)
    latents: int = 4
    l1: float = 0.1
    gradient_l1: float = 0.05
    kl: float = 1e-4


@dataclass(frozen=True)
class Unet:
    fit: Fit = Fit(steps=3372, batch=32, learning_rate=1e-3, constant=0.3, ema=0.999)
    widths: tuple[int, ...] = (32, 64, 128, 128)
    heads: tuple[int, ...] = (1, 2, 4, 4)
    empty_captions: float = 0.1
    min_snr: float = 5.0


@dataclass(frozen=True)
class ClipImage:
    fit: Fit = Fit(steps=978, batch=128, learning_rate=1e-3, weight_decay=0.05)
    drawn_share: float = 0.5  # share of each batch that went through the VAE or the UNet
    draws: int = 2  # one-step denoised pictures of each latent
    noise_levels: tuple[int, int] = (100, 750)


@dataclass(frozen=True)
class Recipe:
    """The settings of all stages."""

    clip: Clip = field(default_factory=Clip)
    vae: Vae = field(default_factory=Vae)
    unet: Unet = field(default_factory=Unet)
    clip_image: ClipImage = field(default_factory=ClipImage)

    @classmethod
    def smoke(cls) -> Recipe:
        """Return toy widths and a few steps for each stage. They show that the training runs, not that it learns."""
        return cls(
            Clip(Fit(3, 8, 1e-3), 32, 1, 2, 32, 1, 2, 16, 32),
            Vae(Fit(3, 4, 1e-3), widths=(8, 16)),
            Unet(Fit(3, 4, 1e-3, constant=0.3, ema=0.999), widths=(8, 8, 16, 16), heads=(1, 1, 2, 2)),
            ClipImage(Fit(3, 8, 1e-3), draws=1),
        )
