"""ImageReward (Xu et al., NeurIPS 2023): what people prefer, by a BLIP that was trained on their rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dato.errors import DatoError
from dato.metrics.base import MeanOverImages, Option, Setup

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_REWARD = Option(
    "image_reward",
    "ImageReward's checkpoint: hub id, folder, or ImageReward.pt.",
    default="THUDM/ImageReward",
)
BACKEND = Option(
    "image_reward_backend",
    "What computes ImageReward: transformers is the only one.",
    default="transformers",
    is_path=False,
)


class ImageReward(MeanOverImages):
    """How much people would like an image for its prompt. 0 is about the average, 1 is a standard deviation above it.

    Attributes:
        model: The network that scores.

    Raises:
        DatoError: if the checkpoint is missing or is something else, or the backend is unknown.
    """

    name, label, digits = "image-reward", "ImageReward", 3
    options = (IMAGE_REWARD, BACKEND)

    def __init__(self, setup: Setup) -> None:
        backend = setup.get(BACKEND)
        if backend == "package":  # older versions had it, and old journals may hold it
            raise DatoError(
                "the backend 'package' of ImageReward is gone, because the authors' package does not import beside "
                "dato's dependencies: use 'transformers', which gives the same scores"
            )
        if backend != BACKEND.default:
            raise DatoError(f"unknown backend {backend!r} of ImageReward; the only one is {BACKEND.default!r}")
        from dato.metrics.image_reward_model import ImageRewardModel

        self.model = ImageRewardModel(setup.get(IMAGE_REWARD), setup.device)

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        return self.model.score(images, prompts)

    def precision_error(self, images: Tensor, prompts: Sequence[str]) -> float:
        """See `Metric`."""
        return self.model.precision_error(images, prompts)
