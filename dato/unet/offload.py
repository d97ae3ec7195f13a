"""diffusers' group offloading, whose hooks wait at a block's forward, for a ladder, which takes blocks apart."""

from __future__ import annotations

from typing import Any

from torch import nn


def enter(group: Any, block: nn.Module | None) -> Any:
    """Bring the weights of the group that a block belongs to to the device, and send those of the one before away.

    Args:
        group: What the last `enter` returned; None at first.
        block: The block whose parts run next; None: no further ones do.

    Returns:
        The group that is on the device now; None where there is no group offloading of blocks.
    """
    hook = getattr(block, "_diffusers_hook", None)
    hook = None if hook is None else hook.get_hook("group_offloading")
    wanted = None if hook is None else hook.group
    if wanted is group:
        return group
    if group is not None:
        group.offload_()
    if wanted is not None:
        wanted.onload_()
        if wanted.stream is not None:
            wanted.stream.synchronize()  # nothing was fetched ahead: which blocks run next is the schedule's affair
    return wanted
