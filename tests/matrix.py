"""The table of what was tested with what, as Markdown: written from the outcomes of tests, and read again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SIGNS = {"passed": "✓", "failed": "✗", "skipped": "–"}
HEAD = """# Supported pipelines

Written by `pytest tests/test_compatibility.py tests/test_samplers.py --matrix docs/supported.md`, not by hand: each
sign is a test's outcome, on tiny models with random weights made of diffusers' own classes. ✓ means: at full depth and
ratio 0 the latents equal stock's bit for bit; a schedule of whole, partial and absent calls, with forecasts and token
pruning, gives finite latents of the same shape, the same each time; and after `remove_patch` they are stock's again.
✗ means that it fails; – that the two do not go together in diffusers. Offloading is tested from a CPU to a CPU,
a UNet that the user compiled with the compiler told to do nothing (tests/test_targets.py compiles), and equal there
means to rounding, for convolutions' weights are laid out otherwise.

What is no `UNet2DConditionModel`, or has other blocks than Stable Diffusion's (transformers such as SD 3 and Flux,
video and motion UNets, DeepFloyd IF, Kandinsky), is refused with one line.
"""


def written(cells: Mapping[tuple[str, str], str]) -> str:
    """The page.

    Args:
        cells: (row, column) -> outcome, in the order of both.
    """
    rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    legend = [f"{number}. {column}" for number, column in enumerate(columns, start=1)]
    table = [
        _line(["", *map(str, range(1, len(columns) + 1))]),
        _line(["---", *[":-:"] * len(columns)]),
        *(_line([row, *(SIGNS.get(cells.get((row, column), ""), " ") for column in columns)]) for row in rows),
    ]
    return "\n".join([HEAD, *legend, "", *table]) + "\n"


def table_of(page: str) -> tuple[list[str], list[str]]:
    """The rows and columns of a page."""
    columns = re.findall(r"^\d+\. (.+)$", page, flags=re.MULTILINE)
    rows = re.findall(r"^\| ([^|]+?) \|", page, flags=re.MULTILINE)
    return [row for row in rows if row != "---" and row.strip()], columns


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
