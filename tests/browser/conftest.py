"""Headless Chromium for the tests of pages."""

import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    """Return a browser that is open for the tests of one file."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NEEDS A BROWSER: no chromium; apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="NEEDS A BROWSER: pip install playwright")
    with api.sync_playwright() as playwright:
        # CI works as root, where Chromium's sandbox does not start; the pages are our own
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()
