"""Results on disk that are either whole or missing, even if the program is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as safe_bytes
from torch import Tensor

from dato.utils.files import write_atomic


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a new folder to the block. It takes the place of `target` only when the block ends without an exception."""
    new, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    if target.exists():
        os.replace(target, old)  # a folder cannot replace one that holds files
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Make and write them first if there is no such file."""
    if path.is_file():
        return load_file(path)
    tensors = make()
    write_atomic(path, safe_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return tensors
