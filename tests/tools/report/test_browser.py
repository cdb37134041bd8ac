"""The page in a real headless browser: drawn, quiet, within its width, in light and dark."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if found is None]
MISSING += ["selenium (make screenshots installs it)"] if importlib.util.find_spec("selenium") is None else []

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return written.as_uri()


def load(browser: Any, page: str, width: int = 1280, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)


def drawings(node: dict[str, Any]) -> list[dict[str, Any]]:
    """SVG elements under a node of the class "drawing", in a tree of the browser's DOM."""
    children = node.get("children", [])
    here = [child for child in children if "drawing" in node.get("attributes", []) and child["nodeName"] == "svg"]
    return here + [found for child in children for found in drawings(child)]


def wider_than_the_window(browser: Any) -> int:
    """Pixels by which the page is wider than the window."""
    found: int = browser.execute_script(
        "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    )
    return found


def test_it_asks_for_nothing_and_complains_of_nothing(browser: Any, page: str) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    load(browser, page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    # The browser's own first page asks for its parts too.
    asked = [one["request"]["url"] for one in requests if one["documentURL"] == page]
    assert [url for url in asked if not url.startswith("data:")] == [page]
    assert browser.get_log("browser") == []


def test_charts_are_drawn(browser: Any, page: str) -> None:
    load(browser, page)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.drawing > svg')].map(e => [e.clientWidth, e.clientHeight])"
    )
    assert len(sizes) > 12
    assert all(width > 200 and height > 60 for width, height in sizes), sizes
    lines = browser.execute_script(
        "return document.querySelectorAll('.curves .drawing path[style*=\"series-0\"]').length"
    )
    assert lines >= 6
    maps = browser.execute_script("return document.querySelectorAll('.wide .drawing image').length")
    assert maps == 6, "active shares and exploration of three runs"


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(browser: Any, page: str, width: int) -> None:
    load(browser, page, width)
    assert wider_than_the_window(browser) == 0


@pytest.mark.parametrize("width", [1280, 400])
def test_labels_of_a_chart_do_not_overlap(browser: Any, page: str, width: int) -> None:
    load(browser, page, width)
    overlapping = browser.execute_script("""
        const found = [];
        for (const svg of document.querySelectorAll('.drawing > svg')) {
            const labels = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
            const frame = svg.getBoundingClientRect();
            labels.forEach(([name, a], i) => {
                if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push([name, 'cut']);
                for (const [other, b] of labels.slice(i + 1))
                    if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
                        found.push([name, other]);
            });
        }
        return found;""")
    assert overlapping == []


def test_dark_is_dark(browser: Any, page: str) -> None:
    def brightness() -> tuple[float, float]:
        of = "getComputedStyle(document.querySelector(arguments[0])).getPropertyValue(arguments[1])"
        found = []
        for selector, name in (("body", "background-color"), (".drawing text", "fill")):
            text = browser.execute_script(f"return {of}", selector, name)
            found.append(sum(float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]) / 765)
        return found[0], found[1]

    load(browser, page)
    paper, ink = brightness()
    assert paper > 0.9 > 0.5 > ink
    load(browser, page, scheme="dark")
    paper, ink = brightness()
    assert paper < 0.2 < 0.5 < ink


@pytest.mark.parametrize("kind", ["lines", "heat", "moves"])
def test_values_show_under_the_pointer(browser: Any, page: str, kind: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    load(browser, page)
    drawing = next(
        figure.find_element(By.CSS_SELECTOR, ".drawing")
        for figure in browser.find_elements(By.CSS_SELECTOR, "figure[data-hover]")
        if json.loads(figure.get_attribute("data-hover"))["kind"] == kind
    )
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", drawing)
    ActionChains(browser).move_to_element(drawing).perform()
    values = browser.find_element(By.CSS_SELECTOR, ".values").text
    assert {"lines": "resumed", "heat": "share active", "moves": "grown"}[kind] in values
    assert wider_than_the_window(browser) == 0
    ActionChains(browser).move_to_element(browser.find_element(By.CSS_SELECTOR, "h2")).perform()
    assert browser.find_elements(By.CSS_SELECTOR, ".values") == []


def test_all_is_there_without_javascript(browser: Any, page: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        load(browser, page)
        # Without scripts the driver does not know when the page is there. The whole tree in one call: a node's number
        # may mean nothing any more in the next one.
        tree = partial(browser.execute_cdp_cmd, "DOM.getDocument", {"depth": -1})
        WebDriverWait(browser, 60).until(lambda _: len(drawings(tree()["root"])) > 12)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
