"""Pictures of the report for the documentation, from real runs, in a headless browser.

    make screenshots

Needs chromium and chromedriver on the PATH. Trains three runs on the digits, one of which is killed and resumed, and a
ResNet-18 on crops of photographs. Writes docs/images/report-*.png and docs/images/masks-moving.png: five minutes on
two cores.
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
WIDTH, HEIGHT = 1280, 6000
"""Pixels. The whole page at once: nothing is scrolled, and the top bar stays in its place."""
SHOWN = (880, 16)
"""Width of the picture for the README, and its margin."""


def train(folder: Path) -> list[Path]:
    """Train one run for each method. The first is killed after 40 lines of its metrics, and resumed."""
    killed = subprocess.Popen(command(folder, METHODS[0]), cwd=ROOT, env=environment())  # noqa: S603 - of ours
    metrics = folder / METHODS[0] / "metrics.jsonl"
    while killed.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < 40):
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    for method in METHODS:
        subprocess.run(command(folder, method), cwd=ROOT, env=environment(), check=True)  # noqa: S603 - of ours
    return [folder / method for method in METHODS]


def train_photographs(folder: Path) -> Path:
    """Train a ResNet-18 whose weights move every ten steps, and return its run's folder."""
    images = folder / "images"
    options = [f"runs={folder}", "name=resnet18", f"data.path={images}", "log.progress=none"]
    often = ["train.epochs=8", "method.period=10", "method.stop_epoch=7"]
    config = ["--config", "configs/sample_images_resnet.yaml"]
    for words in (["-m", "pipelines", "sample_images", str(images)], ["dist_train.py", *config, *options, *often]):
        subprocess.run([sys.executable, *words], cwd=ROOT, env=environment(), check=True)  # noqa: S603 - of ours
    return folder / "resnet18"


def command(folder: Path, method: str) -> list[str]:
    """Return the command that starts a run on the digits, or resumes it."""
    options = [f"name={method}", f"runs={folder}", "log.progress=none", "--resume", "auto"]
    return [sys.executable, "dist_train.py", "--config", f"configs/digits_{method}.yaml", *options]


def environment() -> dict[str, str]:
    """Return an environment in which torch uses one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def show(browser: Any, page: Path, *, dark: bool = False) -> None:
    """Open a page in light or dark colours."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


def picture(browser: Any, first: str, last: str, name: str, *, width: int = WIDTH, margin: int = 12) -> None:
    """Save what is shown from the top of one element to the bottom of another."""
    side = "return document.querySelector(arguments[0]).getBoundingClientRect()[arguments[1]] + scrollY"
    top, bottom = browser.execute_script(side, first, "top"), browser.execute_script(side, last, "bottom")
    clip = {"x": 0, "y": max(0, top - margin), "width": width, "height": bottom - top + 2 * margin, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as whole:
        whole.convert("RGB").save(IMAGES / name, optimize=True)


def report(page: Path, *runs: Path) -> Path:
    """Write the report of some runs."""
    words = [sys.executable, "-m", "dynsparse", "report", *map(str, runs), "--out", str(page)]
    subprocess.run(words, cwd=ROOT, check=True)  # noqa: S603 - of ours
    return page


def take(browser: Any, compared: Path, photographs: Path) -> None:
    """Save all pictures, from a report that compares the digits' runs and one of the ResNet-18."""
    show(browser, compared)
    picture(browser, "h1", "#overview .scroll", "report-overview.png")
    picture(browser, "#curves", "#curves", "report-curves.png")
    picture(browser, "#layers", "#layers details", "report-layers.png")
    picture(browser, "#faults", "#faults .wide", "report-faults.png")
    show(browser, compared, dark=True)
    picture(browser, "#curves", "#curves", "report-dark.png")
    show(browser, photographs)
    width, margin = SHOWN
    picture(browser, "#layers .bar", "#layers .wide", "masks-moving.png", width=width, margin=margin)


def main() -> None:
    """Train, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or chromedriver is None:
        sys.exit("chromium or chromedriver is not on the PATH; install both (Debian: chromium, chromium-driver)")
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        compared = report(folder / "compared.html", *train(folder))
        photographs = report(folder / "photographs.html", train_photographs(folder))
        browser = open_browser(chromium, chromedriver, f"{folder}/profile")
        try:
            take(browser, compared, photographs)
        finally:
            browser.quit()
    print(f"written: report-*.png and masks-moving.png in {IMAGES}")


if __name__ == "__main__":
    main()
