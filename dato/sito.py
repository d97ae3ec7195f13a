"""SiTo as its authors' README uses it: `from dato import sito; sito.apply_patch(model, prune_ratio=0.5)`.

The keywords, their order and their defaults are those of the authors' code. So are the settings that it does not name:
each block chooses its own tokens, and a pruned token gets the output of its most similar kept token. `dato.apply_patch`
has other defaults (see `dato.Pruning`), and can also leave out rungs of the UNet.

Source: Zhang et al., "Training-Free and Hardware-Friendly Acceleration for Diffusion Models via Similarity-based Token
Pruning" (SiTo, AAAI 2025), and https://github.com/EvelynZhang-epiclab/SiTo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from dato.errors import DatoError
from dato.pruning import SITO_PRUNING
from dato.unet import patch
from dato.unet.kinds import adapter_of
from dato.unet.targets import unet_of

T = TypeVar("T")


def apply_patch(
    model: T,
    prune_ratio: float | Sequence[float] = 0.5,
    max_downsample_ratio: int = 1,
    prune_selfattn_flag: bool = True,
    prune_crossattn_flag: bool = False,
    prune_mlp_flag: bool = False,
    sx: int = 2,
    sy: int = 2,
    noise_alpha: float = 0.1,
    sim_beta: float = 1,
) -> T:
    """Prune tokens in every call of a pipeline, as SiTo does. A second call replaces the patch.

    The number of steps need not be known. What the noise draws is fixed, so equal runs give equal images, and the
    pipeline's random numbers stay as they are.

    Args:
        model: A diffusers pipeline with a `UNet2DConditionModel`, or such a UNet; or a model of CompVis' code, as
            `LatentDiffusion`, or its `UNetModel`.
        prune_ratio: The share of tokens to prune, the same in all calls. A list has one for each timestep of the
            sampler, or one for each call. Calls at the same timestep share an entry: 50 entries serve the 51 calls of
            50 PLMS steps, whose second and third call are at the same timestep. A run of another length gets the list
            resampled, with a warning.
        max_downsample_ratio: Prune in blocks at a downsampling of at most this.
        prune_selfattn_flag: Prune around self-attention.
        prune_crossattn_flag: Prune around cross-attention. The authors advise against it.
        prune_mlp_flag: Prune around the feed-forward. The authors advise against it.
        sx: Width of a patch in tokens.
        sy: Height of a patch in tokens.
        noise_alpha: Weight of the noise.
        sim_beta: Weight of the SimScore.

    Returns:
        `model`.

    Raises:
        DatoError: if it is not such a model, a value is not valid, or the UNet has no attention at so low a
            downsampling.

    Example:
        >>> import dato
        >>> pipe = apply_patch(dato.load_pipeline(), prune_ratio=0.5)
        >>> pipe("rose on a white background", num_inference_steps=3).images[0].size
        (64, 64)
        >>> dato.current_schedule(remove_patch(pipe)) is None
        True
    """
    pruning = replace(
        SITO_PRUNING,
        recover_from="kept",
        max_downsample=max_downsample_ratio,
        self_attention=prune_selfattn_flag,
        cross_attention=prune_crossattn_flag,
        feed_forward=prune_mlp_flag,
        sx=sx,
        sy=sy,
        noise_alpha=noise_alpha,
        sim_beta=sim_beta,
    )
    first = min(adapter_of(unet_of(model)[0]).places.downsamplings, default=None)
    if first is None:
        raise DatoError("this UNet has no transformer blocks, so it has no tokens to prune")
    if max_downsample_ratio < first:
        raise DatoError(
            f"`max_downsample_ratio`={max_downsample_ratio} prunes nothing here: this UNet's attention begins at a "
            f"downsampling of {first}; give {first}"
        )
    return patch.apply_patch(model, prune_ratio=prune_ratio, **asdict(pruning))


def remove_patch(model: T) -> T:
    """Remove the patch, if there is one: the pipeline is the stock one again.

    Returns:
        `model`.
    """
    return patch.remove_patch(model)
