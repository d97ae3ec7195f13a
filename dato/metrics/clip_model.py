"""A CLIP model: features of unit length for images and prompts, and the CLIP score of a pair.

It loads every CLIP checkpoint in transformers' layout, the embedded one and OpenAI's alike. It works on tensors:
images are prepared by the checkpoint's own preprocessor settings, and are not rounded to 8 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dato.errors import DatoError, first_line
from dato.metrics.base import UNREADABLE
from dato.utils.images import check_images
from dato.utils.weight_files import check_is_whole, weights_in


class Clip:
    """A CLIP checkpoint in evaluation mode on one device.

    Args:
        folder_or_id: A folder or a hub id in transformers' layout.
        device: Where it runs.
        dtype: The precision.
        batch_size: How many images or prompts run at once.
        processor: A folder or hub id of preprocessing and tokenizer, for a checkpoint that has none of its own.

    Raises:
        DatoError: if it cannot be loaded.
    """

    def __init__(
        self,
        folder_or_id: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        processor: str | Path | None = None,
    ) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        if Path(folder_or_id).is_dir():
            for file in weights_in(Path(folder_or_id)).get(None, ()):
                check_is_whole(file)
        try:
            model, info = CLIPModel.from_pretrained(str(folder_or_id), output_loading_info=True)
            if info["missing_keys"] or info["mismatched_keys"]:
                missing = sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))
                raise OSError(f"it is no CLIP: there are no weights for {missing[0]} and {len(missing) - 1} more")
            settings = _load_first(CLIPImageProcessor, folder_or_id, processor).to_dict()
            vocabulary = model.config.text_config.vocab_size
            self.tokenizer = _load_first(
                # Without its files transformers makes an empty tokenizer, for which all prompts are equal.
                CLIPTokenizer,
                folder_or_id,
                processor,
                accept=lambda tokenizer: 2 * len(tokenizer) > vocabulary,
            )
        except UNREADABLE as error:
            raise DatoError(f"cannot load a CLIP model from '{folder_or_id}': {first_line(error)}") from error
        # Cast after loading, because the keyword for the dtype has another name in older transformers.
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_size = batch_size
        self.max_length = model.config.text_config.max_position_embeddings
        self._size = settings["size"]
        self._crop = settings["crop_size"] if settings["do_center_crop"] else None
        self._mean = torch.tensor(settings["image_mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(settings["image_std"]).view(1, 3, 1, 1)

    def image_features(self, images: Tensor) -> Tensor:
        """Return projected image embeddings of unit length.

        Args:
            images: (B, 3, H, W), any size, values in [0, 1], on any device.

        Returns:
            (B, F) float32 on this object's device.

        Raises:
            DatoError: if the shape or the values are others.
        """
        check_images(images, "CLIP")
        return self._batched(lambda batch: self.model.get_image_features(self.preprocess(batch)), images)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Return projected text embeddings of unit length. A prompt longer than the model's context is cut.

        Returns:
            (B, F) float32 on this object's device.
        """
        # Pad to the full context always. Else a prompt's features would depend on the other prompts of the batch.
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        ids_and_mask = torch.stack((tokens.input_ids, tokens.attention_mask), 1)
        return self._batched(
            lambda batch: self.model.get_text_features(
                batch[:, 0].to(self.device), attention_mask=batch[:, 1].to(self.device)
            ),
            ids_and_mask,
        )

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the CLIP score of each image with its prompt: 100 max(0, cos).

        Hessel et al. 2021 (https://arxiv.org/abs/2104.08718), in the scale of torchmetrics and diffusers.

        Returns:
            (B,) float32, 0 to 100.

        Raises:
            DatoError: if there are not as many prompts as images.
        """
        return 100 * self.cosine(images, prompts).clamp(0, 1)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine between each image's features and its prompt's, (B,). It raises the errors of `score`."""
        if len(images) != len(prompts):
            raise DatoError(f"the CLIP score needs one prompt per image, not {len(prompts)} for {len(images)}")
        return (self.image_features(images) * self.text_features(prompts)).sum(1)

    @property
    def scale(self) -> float:
        """Return the factor by which the model multiplies cosines."""
        return self.model.logit_scale.exp().item()

    def preprocess(self, images: Tensor) -> Tensor:
        """Apply the checkpoint's image processor to a tensor: resize, centre crop, normalise.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            (B, 3, h, w), in the size of the image tower, in the model's dtype and on its device.
        """
        images = images.to(self.device, torch.float32)
        height, width = images.shape[-2:]
        if edge := self._size.get("shortest_edge"):
            short = min(height, width)
            target = (int(edge * height / short), int(edge * width / short))
        else:
            target = (self._size["height"], self._size["width"])
        if target != (height, width):
            # Bicubic interpolation overshoots. Training clipped it, too, because pictures had 8 bits.
            images = F.interpolate(images, target, mode="bicubic", antialias=True).clamp(0, 1)
        if self._crop:
            top = (target[0] - self._crop["height"]) // 2
            left = (target[1] - self._crop["width"]) // 2
            images = images[..., top : top + self._crop["height"], left : left + self._crop["width"]]
        return ((images - self._mean.to(images)) / self._std.to(images)).to(self.dtype)

    @torch.no_grad()
    def _batched(self, features: Callable[[Tensor], Any], inputs: Tensor) -> Tensor:
        if not len(inputs):
            return torch.zeros(0, self.model.config.projection_dim, device=self.device)
        batches = (features(batch) for batch in inputs.split(self.batch_size))
        # transformers 5 returns an output object, earlier versions return the embeddings.
        embeddings = [batch if isinstance(batch, Tensor) else batch.pooler_output for batch in batches]
        return F.normalize(torch.cat(embeddings).float(), dim=1)


def _load_first(kind: Any, *sources: str | Path | None, accept: Callable[[Any], bool] = lambda loaded: True) -> Any:
    """Load from the first of the sources that has it. Raise OSError or ValueError if none has it."""
    *others, last = [str(source) for source in sources if source is not None]
    for source in others:
        with contextlib.suppress(OSError, ValueError):
            loaded = kind.from_pretrained(source)
            if accept(loaded):
                return loaded
    loaded = kind.from_pretrained(last)
    if not accept(loaded):
        raise OSError(f"there are no files of a {kind.__name__}")
    return loaded
