"""Which tests run: the everyday ones, a share of the rest, or everything.

The rest are tests that are marked `thorough`, and most cells of the table of supported pipelines. Every behaviour has
an everyday test; the rest repeat it for more cases, or in longer runs.
"""

from __future__ import annotations

import re
from typing import Any
from zlib import crc32

import pytest

# Two processes take file after file. These take longest, so they come first.
LONG = (
    "test_searches.py",
    "test_end_to_end.py",
    "test_speed.py",
    "test_compatibility.py",
    "test_stress.py",
)
EVERYDAY_PIPELINE = "SD 1.x"  # every day all of its cells, and of each other pipeline every `EVERYDAY_PART`-th
EVERYDAY_PART = 96


def add_options(parser: pytest.Parser) -> None:
    """Add the options that choose tests."""
    parser.addoption("--everything", action="store_true", help="run all tests, not only the everyday ones")
    parser.addoption("--share", metavar="K/N", help="run the everyday tests and the K-th of N parts of the rest")
    parser.addoption("--matrix", metavar="FILE", help="test every pipeline with everything, and write a table of it")
    parser.addoption("--combinations", type=int, help="how many random runs tests/unet/test_stress.py makes")


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests, the long files first, and deselect those that are not asked for."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if config.getoption("--everything"):
        return
    part, parts = _share(config.getoption("--share"))
    every_cell = bool(config.getoption("--matrix"))
    kept, left = [], []
    for item in items:
        wanted = _is_everyday(item) or (every_cell and _cell(item)) or (parts and _number(item) % parts == part)
        (kept if wanted else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def thorough(*cases: Any) -> list[Any]:
    """Return cases of `pytest.mark.parametrize` that run with the rest only; a case of several arguments is a tuple."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough) for case in cases]


def combinations(config: pytest.Config) -> int:
    """Return how many random runs the stress test makes: 8 every day, 1,000 with --everything."""
    asked = config.getoption("--combinations")
    return asked or (1000 if config.getoption("--everything") else 8)


def _share(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 0
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
    if match is None:
        raise pytest.UsageError(f"--share {text}: give K/N, as in 0/8")
    part, parts = int(match[1]), int(match[2])
    return part % parts, parts


def _cell(item: pytest.Item) -> bool:
    """Tell whether a test is a cell of the table of supported pipelines."""
    return getattr(item, "originalname", "") in ("test_feature", "test_sampler")


def _is_everyday(item: pytest.Item) -> bool:
    if item.get_closest_marker("thorough") is not None:
        return False
    if not _cell(item) or item.callspec.params["name"] == EVERYDAY_PIPELINE:
        return True
    return _number(item) % EVERYDAY_PART == 0


def _number(item: pytest.Item) -> int:
    """A number that stays the same from run to run and from machine to machine."""
    return crc32(item.nodeid.encode())
