"""InceptionV3 as FID's measuring instrument: pytorch-fid's network, with the weights of all published numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from pytorch_fid import inception as pytorch_fid
from torch import Tensor

from dato.errors import DatoError, first_line
from dato.metrics.base import UNREADABLE, needs_weights
from dato.utils.images import in_8_bits

FEATURES = 2048  # of the final average pooling


class Inception:
    """The features that FID and KID compare (Heusel et al., NeurIPS 2017).

    Args:
        weights: The file that pytorch-fid publishes, kept elsewhere; None: torch's cache, or fetched.
        device: Where it runs.

    Raises:
        DatoError: the weights are not there, or are another network's.
    """

    BATCH = 50  # as in pytorch-fid

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        with _from_hub() if weights is None else _from_file(Path(weights)):
            network = pytorch_fid.InceptionV3()
        self._network = network.to(self.device).eval()
        self._last: tuple[Tensor | None, Tensor] = (None, torch.zeros(0, FEATURES))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features of images (n, 3, H, W) in [0, 1], of any size, as they would be on disk in 8 bits.

        Returns:
            (n, 2048) float32 on the CPU; NaN for an image that is not finite.
        """
        if images is not self._last[0]:  # FID and KID ask for the same, one after the other
            pixels = (in_8_bits(batch).to(self.device) / 255 for batch in images.split(self.BATCH))
            batches = [self._network(batch)[0].flatten(1).float().cpu() for batch in pixels]
            features = torch.cat([torch.zeros(0, FEATURES), *batches])
            broken = ~images.isfinite().flatten(1).all(1).cpu()
            self._last = images, features.masked_fill(broken[:, None], torch.nan)
        return self._last[1]


@contextlib.contextmanager
def _from_hub() -> Iterator[None]:
    load = partial(torch.hub.load_state_dict_from_url, map_location="cpu", weights_only=True)
    with needs_weights("fid", pytorch_fid.FID_WEIGHTS_URL), _loading_by(lambda url, **_: load(url)):
        yield


@contextlib.contextmanager
def _from_file(path: Path) -> Iterator[None]:
    try:
        with _loading_by(lambda *_, **__: torch.load(path, map_location="cpu", weights_only=True)):
            yield
    except UNREADABLE as error:
        raise DatoError(f"{path}: not the weights of pytorch-fid's InceptionV3 ({first_line(error)})") from None


def _loading_by(load: Callable[..., dict[str, Tensor]]) -> AbstractContextManager:
    """pytorch-fid has no argument for where its weights are, and would unpickle whatever is in the file."""
    return mock.patch.object(pytorch_fid, "load_state_dict_from_url", load)
