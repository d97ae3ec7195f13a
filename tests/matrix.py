"""The table of what was tested with what, as Markdown: written from the outcomes of tests, and read again."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

SIGNS = {"passed": "✓", "failed": "✗", "skipped": "–"}
HEAD = """# Supported pipelines

The tests write this page: `pytest tests/unet/test_compatibility.py tests/unet/test_samplers.py --matrix
docs/supported.md`. Each sign is the outcome of a test, on a tiny model with random weights, made of diffusers' own
classes.

- ✓ means three things. At full depth and ratio 0, the latents equal stock's bit for bit. A schedule of whole, partial
  and absent calls, with forecasts and token pruning, gives finite latents of the same shape, and the same latents
  each time. After `remove_patch`, the latents are stock's again.
- ✗ means that the test fails.
- – means that diffusers cannot combine the two.

Offloading is tested from a CPU to a CPU. A UNet that the user compiled is tested with a compiler that does nothing
(`tests/unet/test_targets.py` really compiles). There "equal" means equal to rounding, because the weights of
convolutions have another layout.

Models of CompVis' code are on [another page](other-code.md#compvis-code). dato refuses everything that has neither a
`UNet2DConditionModel` nor CompVis' `UNetModel`, or has other blocks than Stable Diffusion's, with one line:
transformers such as SD 3 and Flux, video and motion UNets, DeepFloyd IF, Kandinsky.
"""


def written(cells: Mapping[tuple[str, str], str], samplers: Collection[str]) -> str:
    """The page.

    Args:
        cells: (row, column) -> outcome, in the order of both.
        samplers: Which of the columns are samplers, the last ones; they have a table of their own.
    """
    rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    numbered = dict(enumerate(columns, start=1))
    page = [HEAD]
    for title in ("Features", "Samplers"):
        some = {n: column for n, column in numbered.items() if (column in samplers) == (title == "Samplers")}
        page += [f"## {title}", "", *(f"{number}. {column}" for number, column in some.items()), ""]
        page += [_line(["", *map(str, some)]), _line(["---", *[":-:"] * len(some)])]
        for row in rows:
            page.append(_line([row, *(SIGNS.get(cells.get((row, column), ""), " ") for column in some.values())]))
        page.append("")
    return "\n".join(page)


def cells_of(page: str) -> dict[tuple[str, str], str]:
    """(row, column) -> sign, of a page."""
    columns = {int(n): column for n, column in re.findall(r"^(\d+)\. (.+)$", page, flags=re.MULTILINE)}
    found, here = {}, []
    for line in page.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|  |"):
            here = [columns[int(number)] for number in cells]
        elif line.startswith("| ") and name != "---":
            found |= {(name, column): cell for column, cell in zip(here, cells, strict=True)}
    return found


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
