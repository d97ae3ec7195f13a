"""`comfyui`: dato's nodes in ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dato.cli.console import out
from dato.comfyui.install import install


def install_nodes(
    path: Annotated[Path, typer.Argument(help="The folder of a ComfyUI, with main.py and custom_nodes.")],
) -> None:
    """Put dato's nodes into a ComfyUI, in whose Python dato is installed.

    It writes a folder with two lines, custom_nodes/dato. To take the nodes away, delete it.
    """
    file = install(path)
    out.print(f"written to {file}; start ComfyUI again", highlight=False, soft_wrap=True, markup=False)
