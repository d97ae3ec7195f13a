"""InceptionV3 as FID uses it: pytorch-fid's variant of the network, with the weights of all published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from pytorch_fid.inception import (
    FID_WEIGHTS_URL,
    FIDInceptionA,
    FIDInceptionC,
    FIDInceptionE_1,
    FIDInceptionE_2,
)
from torch import Tensor, nn
from torchvision.models import inception_v3

from dato.errors import DatoError, first_line
from dato.metrics.base import UNREADABLE, needs_weights
from dato.utils.images import in_8_bits
from dato.utils.weight_files import check_is_content

FEATURES = 2048  # numbers that the final average pooling returns
_CLASSES = 1008  # of the published weights' last layer, which FID does not use
_SIZE = 299  # pixels


class Inception:
    """The features that FID and KID compare (Heusel et al., NeurIPS 2017).

    Args:
        weights: The file that pytorch-fid publishes. None: the one in torch's cache, downloaded if it is not there.
        device: Where it runs.

    Raises:
        DatoError: if there are no weights, or they are of another network.
    """

    BATCH = 50  # as in pytorch-fid

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        network = _from_hub() if weights is None else _from_file(Path(weights))
        self._network = network.to(self.device).eval().requires_grad_(False)
        self._last: tuple[Tensor | None, Tensor] = (None, torch.zeros(0, FEATURES))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features of images (n, 3, H, W) in [0, 1], of any size, rounded to 8 bits as files are.

        Returns:
            (n, 2048) float32 on the CPU. NaN for an image that is not finite.
        """
        if images is not self._last[0]:  # FID and KID ask for the same images, one after the other
            pixels = (in_8_bits(batch).to(self.device) / 255 for batch in images.split(self.BATCH))
            batches = [self._network(_prepared(batch)).float().cpu() for batch in pixels]
            features = torch.cat([torch.zeros(0, FEATURES), *batches])
            broken = ~images.isfinite().flatten(1).all(1).cpu()
            self._last = images, features.masked_fill(broken[:, None], torch.nan)
        return self._last[1]


def _prepared(images: Tensor) -> Tensor:
    """Return images (n, 3, H, W) in [0, 1] as the network takes them: 299 x 299, in [-1, 1]."""
    return 2 * F.interpolate(images, (_SIZE, _SIZE), mode="bilinear", align_corners=False) - 1


def _from_hub() -> nn.Module:
    with needs_weights("fid", FID_WEIGHTS_URL):
        return _network(torch.hub.load_state_dict_from_url(FID_WEIGHTS_URL, map_location="cpu", weights_only=True))


def _from_file(path: Path) -> nn.Module:
    if path.is_file():
        check_is_content(path)
    try:
        return _network(torch.load(path, map_location="cpu", weights_only=True))
    except UNREADABLE as error:
        raise DatoError(f"{path}: not the weights of pytorch-fid's InceptionV3 ({first_line(error)})") from None


def _network(weights: Mapping[str, Tensor]) -> nn.Module:
    """Return pytorch-fid's network, which returns the features (n, 2048) instead of classes.

    It is torchvision's with other blocks, as in pytorch-fid's `fid_inception_v3`. That function has no argument for
    the file of weights, and runs any code that is pickled in it.
    """
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        network = inception_v3(weights=None, num_classes=_CLASSES, aux_logits=False, init_weights=False)
        network.Mixed_5b = FIDInceptionA(192, pool_features=32)
        network.Mixed_5c = FIDInceptionA(256, pool_features=64)
        network.Mixed_5d = FIDInceptionA(288, pool_features=64)
        network.Mixed_6b = FIDInceptionC(768, channels_7x7=128)
        network.Mixed_6c = FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6d = FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6e = FIDInceptionC(768, channels_7x7=192)
        network.Mixed_7b = FIDInceptionE_1(1280)
        network.Mixed_7c = FIDInceptionE_2(2048)
    network.load_state_dict(weights, assign=True)
    network.fc = nn.Identity()
    return network
