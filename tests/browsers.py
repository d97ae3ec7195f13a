"""A browser for the tests of pages. Where there is none, these tests are skipped and say so."""

import contextlib
import shutil

import pytest


@contextlib.contextmanager
def chromium():
    """Chromium, driven by playwright."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[test]")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
