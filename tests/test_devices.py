"""The option --device: which tests run on a GPU, and what a machine without one says."""

import subprocess
import sys
from types import SimpleNamespace

import devices
import pytest
import torch
from conftest import ROOT
from devices import agree, is_core

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


class Hook:
    """Notes what is deselected."""

    def pytest_deselected(self, items):
        self.items = items


def chosen(core_only):
    """(files that run, files that do not) of all test files."""
    items = [SimpleNamespace(path=path) for path in (ROOT / "tests").rglob("test_*.py")]
    config = SimpleNamespace(option=SimpleNamespace(core_only=core_only), hook=Hook())
    config.hook.items, count = [], len(items)
    devices.choose(config, items)
    assert len(items) + len(config.hook.items) == count
    return [{item.path.name for item in part} for part in (items, config.hook.items)]


def test_a_cpu_runs_everything_and_another_device_the_core():
    everything, left = chosen(core_only=False)
    assert {"test_ladder.py", "test_page.py"} <= everything and not left
    core, left = chosen(core_only=True)
    assert {"test_ladder.py", "test_forecast.py", "test_selection.py", "test_patch.py", "test_samplers.py"} <= core
    assert {"test_page.py", "test_compatibility.py", "test_devices.py"} <= left


def test_every_entry_of_the_core_is_there():
    for name in devices.CORE:
        path = ROOT / "tests" / name
        assert path.exists() and is_core(path)


@NO_GPU
def test_a_machine_without_the_device_says_so(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    with pytest.raises(pytest.UsageError, match="--device cuda: PyTorch cannot use it on this machine"):
        devices.use("cuda")
    with pytest.raises(pytest.UsageError, match="--device gpu: "):
        devices.use("gpu")


@NO_GPU
@pytest.mark.thorough
def test_the_command_ends_with_one_line():
    command = [sys.executable, "-m", "pytest", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and len(lines) == 1 and "--device cuda" in lines[0]


def test_results_are_equal_on_a_cpu_and_close_elsewhere(monkeypatch):
    for device, close in (("cpu", False), ("meta", True)):
        monkeypatch.setattr(devices, "_device", torch.device(device))
        assert agree(torch.ones(3), torch.ones(3)) and not agree(torch.ones(3), torch.ones(3) + 1e-2)
        assert agree(torch.ones(3), torch.ones(3) + 1e-6) is close


def test_random_numbers_are_drawn_on_the_cpu(monkeypatch):
    monkeypatch.setattr(devices, "_device", torch.device("meta"))
    drawn = devices.randn(2, 3, generator=torch.Generator().manual_seed(0))  # this generator cannot draw elsewhere
    assert drawn.device.type == "meta" and drawn.shape == (2, 3)
