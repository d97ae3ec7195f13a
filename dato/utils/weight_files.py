"""Files of weights: which ones a folder in diffusers' or transformers' layout has, and whether they are whole."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from zipfile import is_zipfile

from dato.errors import DatoError, first_line
from dato.utils.files import has_suffix

AGAIN = "copy or download it again"
_POINTER = b"version https://git-lfs"  # begins the text that Git has in place of a large file
# A variant's name stands before the number of a part or, in old files, behind it.
_NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.(safetensors|bin)"
)


def weights_in(folder: Path) -> dict[str | None, Sequence[Path]]:
    """Return variant -> the files of weights that are loaded from a folder. The variant is None, or such as "fp16".

    If there are both, safetensors are loaded and pickles (.bin) are not.
    """
    found: dict[str | None, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        if (name := _NAME.fullmatch(path.name)) is not None:
            found.setdefault(name[1] or name[2], {}).setdefault(name[3], []).append(path)
    return {variant: files.get("safetensors", files.get("bin", [])) for variant, files in found.items()}


def check_is_content(file: str | Path) -> None:
    """Raise DatoError if a file is empty, cannot be read, or is a pointer of Git LFS in place of the file."""
    try:
        with Path(file).open("rb") as opened:
            begin = opened.read(len(_POINTER))
    except OSError as error:
        raise DatoError(f"cannot read {file}: {error.strerror}") from None
    if not begin:
        raise DatoError(f"{file} is damaged: it is empty; {AGAIN}")
    if begin == _POINTER:
        raise DatoError(
            f"{file} is damaged: it is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
        )


def check_is_whole(file: Path) -> None:
    """Raise DatoError if a file of weights (safetensors, or a pickle of torch's) is damaged or cut off.

    Of safetensors and of torch's zip files only the table of contents is read, which a file that was cut off lacks or
    does not fit. An older pickle is read whole. Code in it does not run.
    """
    check_is_content(file)
    try:
        if has_suffix(file, ".safetensors"):
            from safetensors import safe_open

            with safe_open(file, "pt"):
                return
        if not is_zipfile(file):
            import torch

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about code that it refuses to load
                torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise DatoError(f"{file} is damaged or cut off ({first_line(error)}): {AGAIN}") from None


def names_in(file: Path) -> set[str]:
    """Return the names of the tensors in a file of weights that is whole."""
    if has_suffix(file, ".safetensors"):
        from safetensors import safe_open

        with safe_open(file, "pt") as tensors:
            return set(tensors.keys())
    import torch

    return set(torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file)))
