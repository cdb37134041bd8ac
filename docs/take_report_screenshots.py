"""Take pictures of the report for the documentation, of real runs on the digits, in a real headless browser.

    make screenshots

It needs chromium and chromedriver on the PATH. It trains three runs in a folder of their own, kills and resumes one of
them, and writes docs/images/report-*.png. That takes a minute on two cores.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from take_screenshots import IMAGES, open_browser

ROOT = Path(__file__).parents[1]
METHODS = ("dsr", "rigl", "static")
WIDTH, HEIGHT = 1280, 6000  # Shows the whole page: nothing scrolls, and sticky headers stay in their places.


def train(folder: Path) -> list[Path]:
    """Train one run a method. The first is killed after 40 lines of its metrics, and resumed."""
    killed = subprocess.Popen(_command(folder, METHODS[0]), cwd=ROOT, env=_environment())  # noqa: S603 - of ours
    metrics = folder / METHODS[0] / "metrics.jsonl"
    while killed.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < 40):
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    for method in METHODS:
        subprocess.run(_command(folder, method), cwd=ROOT, env=_environment(), check=True)  # noqa: S603 - of ours
    return [folder / method for method in METHODS]


def _command(folder: Path, method: str) -> list[str]:
    options = [f"name={method}", f"runs={folder}", "log.progress=none", "--resume", "auto"]
    return [sys.executable, "dist_train.py", "--config", f"configs/digits_{method}.yaml", *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def show(browser: Any, page: Path, *, dark: bool = False) -> None:
    """Open a page in the light or dark scheme, in a window that holds all of it."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


def picture(browser: Any, first: str, last: str, name: str) -> None:
    """Save a picture from the top of one element to the bottom of another, over the whole width."""
    side = "return document.querySelector(arguments[0]).getBoundingClientRect()[arguments[1]] + scrollY"
    top, bottom = browser.execute_script(side, first, "top"), browser.execute_script(side, last, "bottom")
    clip = {"x": 0, "y": max(0, top - 12), "width": WIDTH, "height": bottom - top + 24, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as whole:
        whole.convert("RGB").save(IMAGES / name, optimize=True)


def main() -> None:
    """Train the runs, make their report and take its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or chromedriver is None:
        sys.exit("chromium or chromedriver is not on the PATH; install both (Debian: chromium, chromium-driver)")
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        runs = train(Path(folder))
        page = Path(folder) / "report.html"
        report = [sys.executable, "-m", "dynsparse", "report", *map(str, runs), "--out", str(page)]
        subprocess.run(report, cwd=ROOT, check=True)  # noqa: S603 - of ours
        browser = open_browser(chromium, chromedriver, f"{folder}/profile")
        try:
            show(browser, page)
            picture(browser, "h1", "#overview .scroll", "report-overview.png")
            picture(browser, "#curves", "#curves", "report-curves.png")
            picture(browser, "#layers", "#layers details", "report-layers.png")
            picture(browser, "#faults", "#faults .wide", "report-faults.png")
            show(browser, page, dark=True)
            picture(browser, "#curves", "#curves", "report-dark.png")
        finally:
            browser.quit()
    print(f"written: {', '.join(sorted(str(path) for path in IMAGES.glob('report-*.png')))}")


if __name__ == "__main__":
    main()
