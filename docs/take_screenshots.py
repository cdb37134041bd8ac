"""Take pictures of TensorBoard for the documentation, from a real run, in a real headless browser.

    make demo && make screenshots

It needs chromium and chromedriver on the PATH, and writes docs/images/tensorboard-*.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from tensorboard import program

from dynsparse.training.callbacks.tensorboard import LAYOUT

IMAGES = Path(__file__).parent / "images"
WAIT_SECONDS = 60
CARD = "tf-custom-scalar-multi-line-chart-card"
CHARTS = sum(len(charts) for charts in LAYOUT.values())

# Everything below is inside TensorBoard's nested shadow roots, where selectors do not reach from outside.
FIND_ALL = """
const found = [];
(function walk(root) {
  for (const element of root.querySelectorAll('*')) {
    if (element.matches(arguments_selector)) found.push(element);
    if (element.shadowRoot) walk(element.shadowRoot);
  }
})(document);
return found;
"""


def find_all(browser: Any, selector: str) -> list[Any]:
    """Find the elements that match, in all shadow roots."""
    found: list[Any] = browser.execute_script(f"const arguments_selector = {selector!r};" + FIND_ALL)
    return found


def wait_until(browser: Any, ready: Callable[[], Any], what: str) -> Any:
    """Wait for `ready()` to be true, and return it. TimeoutException, with `what`, after a minute."""
    return WebDriverWait(browser, WAIT_SECONDS, 0.25).until(lambda _: ready(), f"{what} did not appear")


def open_browser(chromium: str, chromedriver: str, profile: str) -> Any:
    """Start a headless browser without network traffic of its own. `profile` is a folder for its files."""
    options = Options()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--window-size=1500,1000",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(chromedriver))


def show_custom_scalars(browser: Any, url: str) -> list[str]:
    """Show all custom charts, with the legends of the first row open. Returns the names of the first chart's lines."""
    browser.get(f"{url}#custom_scalars&_smoothingWeight=0")
    wait_until(browser, lambda: len(find_all(browser, CARD)) == CHARTS, "the custom charts")
    first = find_all(browser, CARD)[0]

    def legend() -> list[str]:
        script = "return [...arguments[0].shadowRoot.querySelectorAll('.match-list-entry')].map(e => e.textContent)"
        entries: list[str] = browser.execute_script(script, first)
        return [word for entry in entries for word in entry.split() if "/" in word]

    lines: list[str] = wait_until(browser, legend, "the legend of the sparsity chart")
    for toggle in find_all(browser, ".toggle-matches-button")[:3]:
        browser.execute_script("arguments[0].click()", toggle)
    return lines


def show_time_series(browser: Any, url: str) -> None:
    """Show the charts of sparsity, one a layer, as the Time Series tab draws them."""
    browser.get(f"{url}?tagFilter=%5E(sparsity%2Flayers%7Cexploration)#timeseries")
    browser.refresh()
    wait_until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "scalar-card")) >= 6, "the scalar cards")
    wait_until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "scalar-card line-chart")) >= 6, "the lines")


def main() -> None:
    """Start TensorBoard and take its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/digits_dsr", help="folder of a finished run")
    arguments = parser.parse_args()
    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or chromedriver is None:
        sys.exit("chromium or chromedriver is not on the PATH; install both (Debian: chromium, chromium-driver)")
    if not Path(arguments.run).is_dir():
        sys.exit(f"{arguments.run} does not exist; run `make demo` first")

    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", arguments.run, "--host", "127.0.0.1", "--port", "0"])
    url = board.launch()
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as profile:
        browser = open_browser(chromium, chromedriver, profile)
        try:
            lines = show_custom_scalars(browser, url)
            settle(browser)
            browser.save_screenshot(str(IMAGES / "tensorboard-layers.png"))
            show_time_series(browser, url)
            settle(browser)
            browser.save_screenshot(str(IMAGES / "tensorboard-time-series.png"))
        finally:
            browser.quit()
    print(f"lines on the chart of sparsity: {', '.join(lines)}")
    print(f"written: {', '.join(sorted(str(path) for path in IMAGES.glob('*.png')))}")


def settle(browser: Any) -> None:
    """Wait until two frames of the page look the same, as charts fade in."""
    last = b""

    def unchanged() -> bool:
        nonlocal last
        now = browser.get_screenshot_as_png()
        same, last = now == last, now
        return same

    wait_until(browser, unchanged, "a page at rest")


if __name__ == "__main__":
    main()
