"""ImageReward's network: the published checkpoint in transformers' own BLIP.

Its authors' package does not import beside a current transformers. The tests compare this model's scores with those
that the package gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dato.errors import DatoError
from dato.metrics.image_reward_weights import HUB_ID, find_files, load_network, load_tokenizer
from dato.utils.images import check_images, picture

MAX_TOKENS = 35
# Mean and standard deviation of the rewards before standardisation.
REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageRewardModel:
    """ImageReward in transformers' BLIP. All sizes are read from the weights.

    Args:
        source: A hub id with ImageReward.pt and med_config.json, a folder with these, or the path of the first. A
            folder may have ImageReward.safetensors instead. BERT's tokenizer files are taken from the same folder, else
            from the hub.
        device: Where it runs.
        dtype: Precision of image and text tower. None: float16 on a GPU, float32 elsewhere.
        batch_size: How many images run at once.
        vision_heads: Attention heads of the image tower. None: one for every 64 dimensions, as in ViT-L.

    Raises:
        DatoError: if files are missing, or are something else.
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
        vocabulary = self.network["text"].config.vocab_size
        if len(self.tokenizer) != vocabulary:
            raise DatoError(f"{checkpoint} has {vocabulary} tokens, and the tokenizer has {len(self.tokenizer)}")

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Judge each image by its prompt.

        Args:
            images: (n, 3, H, W) in [0, 1], any size. They are rounded to 8 bits, as in the files that the authors'
                package scores.
            prompts: n. Each is cut after 35 tokens.

        Returns:
            (n,) float32 on the CPU, in the published scale. NaN for an image that is not finite.

        Raises:
            DatoError: if the shape or the values are others, or there are not as many prompts as images.
        """
        return self._score(images, prompts, self.dtype)

    def precision_error(self, images: Tensor, prompts: Sequence[str]) -> float:
        """Return the largest difference between the scores in the model's precision and in float32."""
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
            # Autocast, not a cast: sums between layers stay float32, and precision_error needs weights in float32.
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
        """Return (n, 3, size, size), normalised. Pillow resizes: torch's resize changes scores by more than 1e-4."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as transforms

        size = self.network["vision"].config.image_size
        resized = (transforms.resize(picture(image), size, InterpolationMode.BICUBIC) for image in images)
        pixels = [transforms.to_tensor(transforms.center_crop(image, size)) for image in resized]
        return transforms.normalize(torch.stack(pixels), PIXEL_MEAN, PIXEL_STD)


def _check(images: Tensor, prompts: Sequence[str]) -> None:
    check_images(images, "ImageReward")
    if len(images) != len(prompts):
        raise DatoError(f"ImageReward needs one prompt per image, not {len(prompts)} for {len(images)}")


def _nan_if_not_finite(scores: Tensor, images: Tensor) -> Tensor:
    # Rounding to 8 bits has turned these into ordinary images, which have ordinary scores.
    return scores.masked_fill(~images.isfinite().flatten(1).all(1).cpu(), torch.nan)
