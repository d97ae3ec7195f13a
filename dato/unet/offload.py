"""Make diffusers' group offloading work for a ladder.

diffusers moves weights in a hook of a block's forward. A ladder runs the parts of a block without that forward, so it
calls `enter` instead.
"""

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
