"""Show a text on a node in ComfyUI's interface."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def show(text: str, nodes: Iterable[str]) -> None:
    """Show a text on nodes. Where there is no server, or an older one, nothing is shown: the log has the text too."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    send = getattr(server, "send_progress_text", None)
    if send is not None:
        for node in nodes:
            send(text, node)
