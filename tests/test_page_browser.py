"""The page in a real browser: its numbers are the API's, and it steers. `make test-browser`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.servers import HOST, free_port, wait_until

selenium = pytest.importorskip("selenium", reason="make test-browser installs selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine"),
]
EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1100,1000",
]  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The example service, and its address."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "aimemo",
        "serve",
        "llm_service:app",
        "--app-dir",
        str(EXAMPLES),
        "--port",
        str(port),
    ]
    environment = {**os.environ, "AIMEMO_URL": "memory://", "AIMEMO_API_KEYS": "demo-key"}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://{HOST}:{port}"
    try:
        wait_until(lambda: answers(f"{address}/internal/cache/health"), "the service answers")
        yield address
    finally:
        running.terminate()
        running.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def text(browser: Any, name: str) -> str:
    return str(browser.find_element("id", name).text)


def test_the_page_shows_what_the_api_says_and_invalidates(service: str, browser: Any) -> None:
    for call in [*["a b c"] * 4, "d e f"]:
        httpx.post(f"{service}/summarize", params={"text": call}, timeout=10)
    httpx.post(f"{service}/sentiment", params={"text": "x"}, timeout=10)
    browser.get(f"{service}/internal/cache/")
    wait_until(lambda: text(browser, "hit-rate") != "–", "the page has read the numbers")
    stats = httpx.get(f"{service}/internal/cache/stats").json()
    assert text(browser, "hit-rate") == f"{100 * stats['hit_rate']:.1f} %" == "50.0 %"
    assert text(browser, "lookups") == "of 6 lookups"
    assert text(browser, "calls-saved") == "3"
    assert text(browser, "coalesced") == "0"
    assert text(browser, "state") == "memory, connected"
    rows = [row.text for row in browser.find_elements("css selector", "#operations tr")]
    assert [row.split()[0] for row in rows] == ["summarize", "sentiment"]
    assert browser.find_element("css selector", "#chart canvas").is_displayed()

    browser.find_element("css selector", "[aria-label='Invalidate summarize']").click()
    key = browser.switch_to.active_element
    assert key.get_attribute("id") == "key", "the keyboard is where it is needed"
    key.send_keys("wrong")
    key.submit()
    wait_until(lambda: "valid key" in text(browser, "ask-error"), "the wrong key is refused")
    key.clear()
    key.send_keys("demo-key")
    key.submit()
    wait_until(lambda: "2 entries invalidated" in text(browser, "state"), "the operation is invalidated")
    before = httpx.get(f"{service}/internal/cache/stats").json()["misses"]
    httpx.post(f"{service}/summarize", params={"text": "a b c"}, timeout=10)
    assert httpx.get(f"{service}/internal/cache/stats").json()["misses"] == before + 1
    complaints = [
        line for line in browser.get_log("browser") if line["level"] == "SEVERE" and "401" not in line["message"]
    ]
    assert complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "dark")])
def test_the_page_fits_its_screen(service: str, browser: Any, width: int, scheme: str, tmp_path: Path) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(f"{service}/internal/cache/")
    wait_until(lambda: text(browser, "hit-rate") != "–", "the page has read the numbers")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    where = os.environ.get("AIMEMO_SCREENSHOTS")
    browser.save_screenshot(str(Path(where or tmp_path) / f"page-{width}-{scheme}.png"))
