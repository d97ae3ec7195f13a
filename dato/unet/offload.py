"""diffusers' group offloading for a ladder: its hooks run at a block's forward, and a ladder runs the block's parts."""

from __future__ import annotations

from typing import Any

from torch import nn


def enter(group: Any, block: nn.Module | None) -> Any:
    """Bring the weights of a block's group to the device, and send those of the group before it away.

    Args:
        group: What the last `enter` returned; None at first.
        block: The block whose parts run next; None if no block runs next.

    Returns:
        The group that is on the device now; None without group offloading of blocks.
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
            wanted.stream.synchronize()  # nothing was prefetched, so wait for the copy
    return wanted
