"""A real browser for tests: Debian's Chromium, driven by Playwright."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def has_browser() -> bool:
    """Whether there is one; a test without one is skipped, and fails where CI is set."""
    if CHROMIUM.exists():
        return True
    if os.environ.get("CI"):
        pytest.fail(f"{CHROMIUM} is not there: apt-get install chromium")
    pytest.skip(f"no browser: {CHROMIUM} is not installed")


@contextmanager
def browser_page(**options: Any) -> Iterator[Any]:
    """A page of a browser, which must not meet an error in any script."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 1000}, **options})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert errors == []
