"""ImageReward (Xu et al., NeurIPS 2023): what people prefer, by a BLIP that was trained on their rankings.

The published checkpoint in transformers' own BLIP, because its authors' package does not import beside a current
transformers. tests/test_image_reward.py compares the two.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dato.errors import DatoError, first_line
from dato.metrics.base import MeanOverImages, Setup
from dato.metrics.image_reward_weights import HUB_ID, find_files, load_network, load_tokenizer
from dato.utils.images import check_images, picture

MAX_TOKENS = 35
# Of rewards: scores are standardised with these.
REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageReward(MeanOverImages):
    """How people who rank a prompt's images would like this one; 0 is about the average, 1 a standard deviation more.

    Attributes:
        model: What scores.
    """

    name = "image-reward"

    def __init__(self, setup: Setup) -> None:
        self.model = load_image_reward(setup.image_reward, setup.device, setup.image_reward_backend)

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        return self.model.score(images, prompts)

    def precision_error(self, images: Tensor, prompts: Sequence[str]) -> float:
        """See `Metric`."""
        return self.model.precision_error(images, prompts)


class ImageRewardModel:
    """ImageReward in transformers' BLIP; its sizes are those of the weights.

    Args:
        source: A hub id with ImageReward.pt and med_config.json, a folder with these, or the path of the first; a
            folder may have ImageReward.safetensors instead. BERT's tokenizer files beside it are used, or the hub's.
        device: Where it runs.
        dtype: Precision of image and text tower; None: float16 on a GPU, float32 elsewhere.
        batch_size: So many images at once.
        vision_heads: Attention heads of the image tower; None: one for 64 dimensions, as in ViT-L.

    Raises:
        DatoError: files are missing, or are something else.
    """

    def __init__(
        self,
        source: str | Path = HUB_ID,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        batch_size: int = 32,
        vision_heads: int | None = None,
    ) -> None:
        checkpoint, med_config = find_files(source)
        self.device = torch.device(device)
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self.batch_size = batch_size
        self.network = load_network(checkpoint, med_config, vision_heads).to(self.device)
        self.tokenizer = load_tokenizer(checkpoint.parent)
        known = self.network["text"].config.vocab_size
        if len(self.tokenizer) != known:
            raise DatoError(f"{checkpoint} knows {known} tokens, the tokenizer has {len(self.tokenizer)}")

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Judge each image by the prompt at the same place.

        Args:
            images: (n, 3, H, W) in [0, 1], any size; rounded to 8 bits, as the files are that the package scores.
            prompts: n; cut after 35 tokens.

        Returns:
            (n,) float32 on the CPU, in the published scale; NaN for an image that is not finite.

        Raises:
            DatoError: the shape or the values are others, or there are not as many prompts as images.
        """
        return self._score(images, prompts, self.dtype)

    def precision_error(self, images: Tensor, prompts: Sequence[str]) -> float:
        """The largest difference between these scores in the model's precision and in float32; raises as `score`."""
        exact = self._score(images, prompts, torch.float32)
        return (self.score(images, prompts) - exact).abs().amax().item() if len(images) else 0.0

    @torch.no_grad()
    def _score(self, images: Tensor, prompts: Sequence[str], dtype: torch.dtype) -> Tensor:
        _check(images, prompts)
        rewards = [torch.zeros(0)]
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            pixels = self._pixels(images[batch]).to(self.device)
            # Always padded to the full length, so that a score does not depend on its neighbours.
            tokens = self.tokenizer(
                list(prompts[batch]), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            # Autocast and not a cast: sums between layers stay float32, and so do the weights for precision_error.
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                hidden = self.network["text"](
                    tokens.input_ids.to(self.device),
                    attention_mask=tokens.attention_mask.to(self.device),
                    encoder_hidden_states=self.network["vision"](pixels).last_hidden_state,
                    is_decoder=False,
                ).last_hidden_state
            rewards.append(self.network["mlp"](hidden[:, 0].float()).squeeze(1).cpu())
        return _nan_if_not_finite((torch.cat(rewards) - REWARD_MEAN) / REWARD_STD, images)

    def _pixels(self, images: Tensor) -> Tensor:
        """(n, 3, size, size), normalised; resized by Pillow: torch's resize changes scores by more than 1e-4."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as transforms

        size = self.network["vision"].config.image_size
        resized = (transforms.resize(picture(image), size, InterpolationMode.BICUBIC) for image in images)
        pixels = [transforms.to_tensor(transforms.center_crop(image, size)) for image in resized]
        return transforms.normalize(torch.stack(pixels), PIXEL_MEAN, PIXEL_STD)


class PackageModel:
    """ImageReward by its authors' package, image-reward, in float32; arguments and methods as of `ImageRewardModel`.

    Raises:
        DatoError: the package does not import, or cannot load the files.
    """

    def __init__(self, source: str | Path = HUB_ID, device: str | torch.device = "cpu") -> None:
        try:
            import ImageReward as package
        except Exception as error:  # beside other packages than it was made for it fails in many ways
            raise DatoError(f"the package image-reward does not import here: {first_line(error)}") from error
        checkpoint, med_config = find_files(source)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._model = package.load(
                    str(checkpoint), device=str(device), med_config=None if med_config is None else str(med_config)
                )
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise DatoError(f"{checkpoint}: the package image-reward cannot load it: {first_line(error)}") from error

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `ImageRewardModel`."""
        _check(images, prompts)
        pairs = zip(prompts, map(picture, images), strict=True)
        return _nan_if_not_finite(
            torch.tensor([self._model.score(*pair) for pair in pairs], dtype=torch.float32), images
        )

    def precision_error(self, images: Tensor, prompts: Sequence[str]) -> float:
        """0: the package computes in float32."""
        return 0.0


BACKENDS: dict[str, type[ImageRewardModel] | type[PackageModel]] = {
    "transformers": ImageRewardModel,
    "package": PackageModel,
}


def load_image_reward(
    source: str | Path = HUB_ID, device: str | torch.device = "cpu", backend: str = "transformers"
) -> ImageRewardModel | PackageModel:
    """Load ImageReward by the backend of that name; arguments and errors as of `ImageRewardModel`."""
    if backend not in BACKENDS:
        raise DatoError(f"unknown backend {backend!r} of ImageReward; known are {', '.join(BACKENDS)}")
    return BACKENDS[backend](source, device)


def _check(images: Tensor, prompts: Sequence[str]) -> None:
    check_images(images, "ImageReward")
    if len(images) != len(prompts):
        raise DatoError(f"ImageReward needs one prompt per image, not {len(prompts)} for {len(images)}")


def _nan_if_not_finite(scores: Tensor, images: Tensor) -> Tensor:
    # Rounding to 8 bits has made ordinary images of these.
    return scores.masked_fill(~images.isfinite().flatten(1).all(1).cpu(), torch.nan)
