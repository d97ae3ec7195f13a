"""Speed of the choice of tokens alone: ours, ToMeSD's matching, and SiTo's steps with the N x N matrix."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dato.experiments.plain_selection import plain_select_tokens
from dato.tokens.selection import select_tokens
from dato.utils.memory import peak_memory
from dato.utils.timing import Stopwatch

PLAIN = "plain N x N"


def time_selection(
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    *,
    size: int = 64,
    channels: int = 320,
    batches: Sequence[int] = (2, 8),
    ratio: float = 0.5,
) -> list[dict[str, Any]]:
    """Time the choice of tokens by each method, in turns: once to warm up, then `rounds` times.

    Args:
        device: Where the tokens are.
        dtype: Of the tokens.
        rounds: Number of timed choices.
        size: Side of the grid of tokens: N = size * size.
        channels: C.
        batches: Batch sizes B.
        ratio: Share of tokens to prune.

    Returns:
        For each batch size and method `select_ms`, `peak_mb` (memory beyond the input's), and the comparison with
        SiTo's steps: `speedup` and `memory_share`.
    """
    rows = []
    for batch in batches:
        # Neighbouring tokens are similar, as in a UNet.
        image = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
        x = torch.nn.functional.avg_pool2d(image, 3, 1, 1).flatten(2).transpose(1, 2).to(device, dtype).contiguous()
        choices = _choices(x, size, int(size * size * ratio))
        medians, peaks = _times(choices, device, rounds), _peaks(choices, device)
        rows += [
            {
                "method": name,
                "batch": batch,
                "tokens": size * size,
                "channels": channels,
                "select_ms": ms,
                "peak_mb": peaks[name],
                "speedup": medians[PLAIN] / ms,
                "memory_share": peaks[name] / peaks[PLAIN],
            }
            for name, ms in medians.items()
        ]
    return rows


def _choices(x: Tensor, size: int, count: int) -> dict[str, Callable[[], object]]:
    """Return a function for each method that chooses `count` of the tokens x (B, N, C)."""
    grid = (size, size)
    choices: dict[str, Callable[[], object]] = {
        PLAIN: lambda: plain_select_tokens(x, grid, count),
        "dato": lambda: select_tokens(x, grid, count),
        "dato, local": lambda: select_tokens(x, grid, count, similarity="local"),
    }
    with contextlib.suppress(ImportError):
        from tomesd.merge import bipartite_soft_matching_random2d as match

        generator = torch.Generator(x.device).manual_seed(0)
        choices["ToMeSD"] = lambda: match(x, size, size, 2, 2, count, generator=generator)
    return choices


def _times(choices: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    watch = Stopwatch(device)
    times: dict[str, list[float]] = {name: [] for name in choices}
    for turn in range(rounds + 1):
        for name, choose in choices.items():
            watch.start()
            choose()
            watch.stop()
            measured = watch.read()
            if turn:
                times[name] += measured
    return {name: statistics.median(values) for name, values in times.items()}


def _peaks(choices: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    peaks = {}
    for name, choose in choices.items():
        with peak_memory(device) as peak:
            choose()
        peaks[name] = peak.bytes / 2**20
    return peaks
