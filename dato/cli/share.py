"""`share`: a front as a repository of the Hugging Face hub, for others to use by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dato.cli.console import out
from dato.strategies import load_front


def share(
    front: Annotated[str, typer.Argument(help="A front: its file, a folder of a run or of --dry-run, or a name.")],
    repo_id: Annotated[str, typer.Argument(help="Its name on the hub: user/name.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new, only you can see it.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what would be uploaded to this folder, and upload nothing."),
    ] = None,
) -> None:
    """Upload a front with a model card, as the user whom `hf auth login` has logged in.

    Its conditions are uploaded too, with the prompts. Paths on this machine are cut to their last part. To edit the
    card first, write both to a folder with --dry-run, and share that folder. A card that was edited, there or on the
    hub, is kept.
    """
    from dato.hub import CARD_FILE, FRONT_FILE, card_in, push_front, save_front

    loaded = load_front(front)
    data, knee = loaded.to_dict(), loaded.knee_index
    card = card_in(front) if Path(front).is_dir() else None
    if dry_run is not None:
        save_front(data, knee, dry_run, repo_id, card)
        for name in (FRONT_FILE, CARD_FILE):
            out.print(f"written to {dry_run / name}", highlight=False, soft_wrap=True, markup=False)
        return
    address = push_front(data, knee, repo_id, card=card, private=private or None, commit_message=message)
    out.print(f"shared: {address}", highlight=False, soft_wrap=True, markup=False)
