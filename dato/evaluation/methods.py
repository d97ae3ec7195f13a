"""Other packages' methods, so that they can be judged and timed beside ours.

In quality DeepCache needs none: a uniform schedule of order 0 is the same computation (tested against the package,
equal). Its time is measured with the package, which walks through the UNet in another way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version

import torch
from diffusers import DiffusionPipeline

from dato.errors import DatoError
from dato.schedule import Schedule
from dato.tokens.pruner import smallest_downsample


@dataclass(frozen=True)
class Peer:
    """A method that is no schedule of ours.

    Attributes:
        name: What tables call it.
        schedule: The schedule that runs as many calls, all whole.
        apply: Makes a pipeline run the method for the length of a `with` block.
        version: Of the package.
    """

    name: str
    schedule: Schedule
    apply: Callable[[DiffusionPipeline], AbstractContextManager]
    version: str = ""


def tomesd_peer(ratio: float, schedule: Schedule) -> Peer | None:
    """ToMeSD (Bolya & Hoffman, CVPRW 2023) at this ratio and the largest grid; None if the package is not there."""
    try:
        import tomesd
    except ImportError:
        return None

    @contextlib.contextmanager
    def apply(pipe: DiffusionPipeline) -> Iterator[None]:
        # Its default of 1 would merge nothing where attention begins at half the resolution, as in SDXL.
        tomesd.apply_patch(pipe, ratio=ratio, max_downsample=smallest_downsample(pipe.unet))
        try:
            # It begins from whatever state torch's own generator is in; its images are to be the same every time.
            with torch.random.fork_rng():
                torch.manual_seed(0)
                yield
        finally:
            tomesd.remove_patch(pipe)

    return Peer(f"ToMeSD {ratio:.0%}", schedule, apply, version("tomesd"))


def deepcache_peer(interval: int, branch: int, schedule: Schedule) -> Peer | None:
    """The package DeepCache (Ma et al., CVPR 2024): every `interval`-th call whole; None if it is not there.

    The package finds a call's index by its timestep, so PLMS's third call, which repeats the second's timestep, is
    shallow even with an interval of 2. All else is `Schedule.uniform`.

    Args:
        interval: Its `cache_interval`.
        branch: Its `cache_branch_id`; the other calls run at depth branch + 1.
        schedule: The schedule that runs as many calls, all whole.

    Raises:
        DatoError: if there is no such interval or branch.
    """
    try:
        from DeepCache import DeepCacheSDHelper
    except ImportError:
        return None
    if interval < 1 or not 0 <= branch < schedule.rungs - 1:
        raise DatoError(
            f"DeepCache: the interval must be at least 1 and the branch from 0 to {schedule.rungs - 2}, "
            f"not {interval} and {branch}"
        )

    @contextlib.contextmanager
    def apply(pipe: DiffusionPipeline) -> Iterator[None]:
        # The package leaves a `forward` of its own in every module that it has wrapped.
        before = {module: module.__dict__.get("forward") for module in pipe.unet.modules()}
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()
            for module, forward in before.items():
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.forward = forward

    return Peer(f"DeepCache (package) N={interval} d={branch + 1}", schedule, apply)
