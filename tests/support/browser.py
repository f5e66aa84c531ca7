"""A headless Chromium for pages on the disk: what it logs, what it asks the network for, how it looks at a width."""

import json
import shutil
from pathlib import Path

import pytest


def open_browser():
    """Start one; skips the test where there is none, and says what is missing."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def set_width(browser, width: int, height: int = 900) -> None:
    """Show the page as on a screen of this size; a phone's is narrow and under a finger."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 500})


def read_page(browser, path) -> None:
    """Open a page and wait until all of its charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(Path(path).absolute().as_uri())
    charts = "return document.querySelectorAll('[data-chart]').length == window.Bokeh.documents.length"
    WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(charts))
    drawn = "return window.Bokeh.documents.every(document => document.is_idle)"
    WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(drawn))


def list_errors(browser) -> list[str]:
    """What the page complained of in the console."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]


def list_requests(browser) -> list[str]:
    """Addresses that the page asked for, but itself and the pictures inside of it."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if not one["request"]["url"].startswith("data:")]


def find_point(browser, key: str) -> tuple[int, int]:
    """Scroll to the map and say where in the window it has the point of a sample."""
    place = browser.execute_script(
        """
        const box = document.querySelector('[data-chart=map]');
        window.scrollTo(0, box.getBoundingClientRect().top + window.scrollY - 100);
        for (const root of window.Bokeh.index.roots) {
          for (const renderer of root.model.renderers ?? []) {
            const columns = renderer.data_source.data;
            const row = columns.key ? Array.from(columns.key).indexOf(arguments[0]) : -1;
            if (row < 0) continue;
            const frame = root.frame.bbox, edge = box.getBoundingClientRect();
            const x = root.frame.x_scale.compute(columns.x[row]), y = root.frame.y_scale.compute(columns.y[row]);
            return [edge.left + x, edge.top + y];
          }
        }
        """,
        key,
    )
    return round(place[0]), round(place[1])


def read_hint(browser) -> dict | None:
    """What the tooltip of a chart shows: its text, its elements, and how wide its picture came out."""
    return browser.execute_script(
        """
        const found = [];
        const walk = node => { for (const one of node.querySelectorAll('*')) {
          if (one.classList.contains('bk-Tooltip')) found.push(one);
          if (one.shadowRoot) walk(one.shadowRoot);
        } };
        walk(document);
        const shown = found.filter(one => one.getBoundingClientRect().width > 0)[0];
        if (!shown) return null;
        const inside = shown.shadowRoot.querySelector('.bk-tooltip-content');
        const image = inside.querySelector('img');
        const tags = Array.from(inside.querySelectorAll('*')).map(one => one.tagName);
        return {text: inside.textContent, tags, picture: image ? image.naturalWidth : 0};
        """
    )
