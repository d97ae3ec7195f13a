"""Read prompts."""

from __future__ import annotations

from pathlib import Path

from dato import emoji_sd
from dato.errors import DatoError
from dato.utils.files import read_text


def read_prompts(source: str | Path | None, count: int | None, split: str = "search") -> list[str]:
    """The first `count` (None: all) prompts of a text file, one a line; of no file: a split of emoji-sd's.

    Raises:
        DatoError: if the file is missing or holds fewer prompts.
    """
    if source is None:
        prompts, where = emoji_sd.prompts(split), f"the embedded model's {split} split"
    else:
        prompts, where = [line.strip() for line in read_text(source).splitlines() if line.strip()], str(source)
    count = len(prompts) if count is None else count
    if not prompts:
        raise DatoError(f"{where} holds no prompts: write one a line")
    if not 1 <= count <= len(prompts):
        raise DatoError(f"{count} prompts are asked for and {where} has {len(prompts)}; change --images or --prompts")
    return prompts[:count]
