"""The device that the core's tests run on: a CPU, or what `pytest --device` names.

Random numbers are drawn on the CPU and then moved, so that they are the same on every device. A comparison of dato with
the stock UNet is exact on every device, because both run the same kernels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# The tests of the core: ladder, cache, forecasts, tokens, patch and samplers.
CORE = (
    "test_call.py",
    "test_num_calls.py",
    "tokens",
    "unet/test_forecast.py",
    "unet/test_ladder.py",
    "unet/test_patch.py",
    "unet/test_samplers.py",
    "unet/test_waste.py",
)
# How far results may differ from those of another implementation, on a device that is no CPU. On a CPU they are equal.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
_TESTS = Path(__file__).parent
_device = torch.device("cpu")


def add_options(parser: pytest.Parser) -> None:
    """Add the option that names the device."""
    parser.addoption("--device", default="cpu", help="run the core's tests on this device, such as cuda")


def configure(config: pytest.Config) -> None:
    """Use the device that the command line names."""
    use(config.getoption("--device"))
    files_are_named = config.args_source is pytest.Config.ArgsSource.ARGS
    config.option.core_only = _device.type != "cpu" and not files_are_named


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is no test of the core, if only these run."""
    if not config.option.core_only:
        return
    config.hook.pytest_deselected(items=[item for item in items if not is_core(item.path)])
    items[:] = [item for item in items if is_core(item.path)]


def is_core(file: Path) -> bool:
    """Tell whether a file tests the core."""
    return any((_TESTS / name) in (file, *file.parents) for name in CORE)


def summary(config: pytest.Config) -> str | None:
    """Return the line that says which tests were left out; None if none were."""
    if not config.option.core_only:
        return None
    return f"--device {_device}: only the tests of the core ran (tests/devices.py). Name files to run other tests."


def use(name: str) -> None:
    """Make `name` the device of the tests.

    Raises:
        pytest.UsageError: if this machine has no such device.
    """
    global _device
    if name != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise pytest.UsageError(f"--device {name}: PyTorch cannot use it on this machine: {reason}") from None
    if device.type != "cpu":
        _compute_exactly()
    _device = device


def _compute_exactly() -> None:
    """Make a GPU compute in full float32, and the same result each time."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def device() -> torch.device:
    """Return the device of the tests."""
    return _device


def put(values: Tensor) -> Tensor:
    """Return values on the device of the tests."""
    return values.to(_device)


def randn(*size: int, **options: Any) -> Tensor:
    """Return normal random numbers, drawn on the CPU, on the device of the tests."""
    return put(torch.randn(*size, **options))


def rand(*size: int, **options: Any) -> Tensor:
    """Return uniform random numbers, drawn on the CPU, on the device of the tests."""
    return put(torch.rand(*size, **options))


def tolerance(dtype: torch.dtype) -> float:
    """Return how far results of this dtype may differ from those of another implementation: 0.0 on a CPU."""
    return 0.0 if _device.type == "cpu" else TOLERANCES[dtype]


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether two results are equal on a CPU, and differ by no more than `tolerance` elsewhere."""
    return ours.shape == theirs.shape and (ours - theirs).abs().max().item() <= tolerance(ours.dtype)
