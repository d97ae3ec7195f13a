"""Run tests in a process of its own, with one module changed. The file of the module stays as it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Only whether tests pass is asked, so what would make failures readable is off.
PYTEST = ["-x", "-q", "-o", "addopts=", "--assert=plain", "--tb=no", f"--rootdir={ROOT}"]
PYTEST += ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]


class _Changed(SourceFileLoader):
    """Load a module of another source than that of its file."""

    source = ""

    def get_data(self, path: str) -> bytes:
        return self.source.encode()

    def path_stats(self, path: str) -> Any:
        raise OSError  # no compiled file of it is read or written


class ChangedModule:
    """Find one module in its file, and load it of another source."""

    def __init__(self, file: str, source: str) -> None:
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self._name, self._path, self._source = name, ROOT / file, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        loader = _Changed(name, str(self._path))
        loader.source = self._source
        return spec_from_file_location(name, self._path, loader=loader)


class Notes:
    """A plugin of pytest. It notes the seconds of each test, and the first test that fails."""

    def __init__(self, coverage: Any = None) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: str | None = None
        self._coverage = coverage

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self._coverage is not None:
            self._coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = f"{report.nodeid} cannot be imported"


def in_a_child(work: Callable[[], Any], limit: float) -> Any:
    """Run a function in a forked process that prints nothing, and return what it returns; None: it took too long."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            os._exit(0)
        os._exit(1)
    os.close(writer)
    end = time.monotonic() + limit
    os.set_blocking(reader, False)
    text, over = b"", False
    while not over:
        over = os.waitpid(pid, os.WNOHANG)[0] == pid
        with contextlib.suppress(BlockingIOError):
            while part := os.read(reader, 1 << 16):
                text += part
        if not over and time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
            return None
        time.sleep(0.01)
    os.close(reader)
    return json.loads(text) if text else {"code": "the process ended"}


def run_tests(tests: Iterable[str], notes: Notes, finder: ChangedModule | None = None) -> int:
    """Run tests in this process, which must be a child, and return pytest's exit code."""
    import hypothesis
    import pytest

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # who fails need not be the smallest example
    hypothesis.settings.register_profile("mutation", database=None, derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutation")
    if finder is not None:
        sys.meta_path.insert(0, finder)
    return int(pytest.main([*PYTEST, *tests], plugins=[notes]))
