"""Builds the image of the Dockerfile with buildah and tries what it promises.

`python3 -m tests.launch.prove_image` is for root, with Debian's buildah, debootstrap and, for containers such as
Docker's, runc. It takes about a quarter of an hour and 10 GB of disk below TMPDIR (/var/tmp). pip works in the build as
it does here: its settings (index, certificates, folders of wheels) are handed to the build, and none is in the image.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.launch.buildah import Buildah, Container, Ended

ROOT = Path(__file__).parents[2]
IMAGE = "dynsparse"
RUNS = "/dynsparse/runs"
NETWORK_SETTINGS = {
    *("cert", "client-cert", "default-timeout", "extra-index-url", "find-links", "index-url", "no-index", "proxy"),
    *("retries", "timeout", "trusted-host"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.launch.prove_image", description=__doc__)
    parser.add_argument("--base", help="image to build on; by default Debian with Python 3.11, made by debootstrap")
    parser.add_argument(
        "--packages",
        default="g++ python3-dev",
        help="what that lacks to compile: SYSTEM_PACKAGES of the Dockerfile (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the image, and say where")
    options = parser.parse_args(arguments)
    tools = ["buildah"] + (["debootstrap"] if options.base is None else [])
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        print(f"error: {missing[0]} is missing; apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("error: a root file system and containers are root's to make; run it as root", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="dynsparse-image-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    buildah = Buildah(folder / "buildah")
    try:
        prove(buildah, folder, options.base, options.packages)
    finally:
        if options.keep:
            print(f"kept: {' '.join(buildah.command('from', IMAGE))}")
        else:
            buildah.remove()
            shutil.rmtree(folder)
    return 0


def prove(buildah: Buildah, folder: Path, base: str | None, packages: str) -> None:
    if base is None:
        base = "localhost/base"
        with timed("a base image, by debootstrap"):
            debootstrap(buildah, base)
    options = ["--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"SYSTEM_PACKAGES={packages}", *pip_options(folder)]
    first = build(buildah, ROOT, options, "the image")
    print(f"     size: {buildah.size(IMAGE) / 1e9:.2f} GB, on a base of {buildah.size(base) / 1e9:.2f} GB")
    print(f"     containers run with {buildah.isolate(IMAGE)}; storage: {buildah.storage[-1]}")
    runs = folder / "runs"
    give(runs, 1000)
    for step in (the_demo, who_it_runs_as, other_commands, wrong_arguments, any_user, a_live_run, tensorboard):
        with timed(step.__name__.replace("_", " ")):
            step(buildah, runs)
    again = build(buildah, changed_code(folder), options, "again, after a change of the code")
    print(f"     a code change costs {again:.1f} s where the build took {first:.1f} s: 1/{first / again:.0f}")


def debootstrap(buildah: Buildah, name: str) -> None:
    container = buildah("from", "scratch")
    mounted = buildah("mount", container)
    packages = "--include=python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", packages, "bookworm", mounted]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for package in Path(mounted, "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    buildah("umount", container)
    buildah("commit", "--rm", container, name)


def pip_options(folder: Path) -> list[str]:
    """Return pip's settings as options of the build: a file that is in no layer, and the folders that it names."""
    printed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings: dict[str, str] = {}
    for line in sorted(printed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in NETWORK_SETTINGS:
            settings[name] = ast.literal_eval(value)
    path = folder / "pip.conf"
    path.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
    words = " ".join(settings.values()).split()
    local = sorted({word.removeprefix("file://").removesuffix("/simple") for word in words})
    volumes = [f"--volume={place}:{place}:ro" for place in local if place.startswith("/") and Path(place).exists()]
    return [f"--secret=id=pip.conf,src={path}", *volumes]


def build(buildah: Buildah, source: Path, options: list[str], what: str) -> float:
    """The seconds that it took. In Docker's format: OCI's knows no healthcheck."""
    began = time.monotonic()
    with timed(what):
        buildah(
            *("bud", "--layers", "--isolation=chroot", "--network=host", "--format=docker", *options),
            *("--tag", IMAGE, source),
        )
    return time.monotonic() - began


def changed_code(folder: Path) -> Path:
    """A copy of what goes into the image, with another line in a file of the package."""
    source = folder / "changed"
    for name in (".dockerignore", "Dockerfile", "LICENSE", "constraints.txt", "dist_train.py", "pyproject.toml"):
        source.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    for name in ("configs", "dynsparse", "launch", "pipelines"):
        shutil.copytree(ROOT / name, source / name)
    with (source / "dynsparse/errors.py").open("a") as file:
        file.write("# changed\n")
    return source


# -- what the image promises -----------------------------------------------------------------------


def ended(buildah: Buildah, runs: Path, *words: str, user: str | None = None) -> Ended:
    with Container(buildah, IMAGE, *words, volumes={runs: RUNS}, user=user) as container:
        return container.end()


def the_demo(buildah: Buildah, runs: Path) -> None:
    """Run it without arguments, as `docker run IMAGE` does."""
    result = ended(buildah, runs)
    assert result.code == 0, result
    print("\n".join(f"     {line}" for line in result.out.splitlines() if "accuracy" in line))
    assert "test accuracy" in result.out
    assert json.loads((runs / "digits_dsr/summary.json").read_text())["status"] == "done"


def who_it_runs_as(buildah: Buildah, runs: Path) -> None:
    assert {path.stat().st_uid for path in runs.rglob("*")} == {1000}
    result = ended(buildah, runs, "bash", "-c", "id -u; pip config list; touch /dynsparse/dist_train.py")
    assert (result.code, result.out) == (1, "1000\n"), result
    assert "Permission denied" in result.err


def other_commands(buildah: Buildah, runs: Path) -> None:
    for words, said in {
        ("--help",): "usage: launch/local.sh",
        ("launch/local.sh", "--help"): "usage: launch/local.sh",
        ("launch/node.sh", "--help"): "usage: launch/node.sh",
        ("python", "-m", "dynsparse", "--help"): "usage: dynsparse",
        ("tensorboard", "--version"): "2.",
        ("python", "dist_train.py", "--config", "configs/digits_dsr.yaml", "--dry-run"): "whole model",
    }.items():
        result = ended(buildah, runs, *words)
        assert result.code == 0, result
        assert said in result.out, result


def wrong_arguments(buildah: Buildah, runs: Path) -> None:
    """Each ends in one line, of which the beginning is printed."""
    for words in (
        ("launch/local.sh",),
        ("launch/local.sh", "--workers", "demo", "--"),
        ("--config", "nowhere.yaml"),
        ("--config", "configs/imagenet_dsr.yaml"),
        ("--config", "configs/digits_dsr.yaml", "runs=/nowhere/runs"),
        ("launch/node.sh", "--head", "elsewhere", "--id", "1", "--", "--config", "configs/digits_dsr.yaml"),
        ("trian",),
    ):
        result = ended(buildah, runs, *words)
        print(f"     {' '.join(words)}: {result.code}, {result.err.strip()}")
        assert result.code == 2, result
        assert result.err.startswith("error: "), result
        assert result.err.count("\n") == 1, result


def any_user(buildah: Buildah, runs: Path) -> None:
    """Run as `--user 4242:4242`, whom /etc/passwd does not know; it compiles, too."""
    theirs = runs.with_name("theirs")
    give(theirs, 4242)
    words = ("--config", "configs/digits_dsr.yaml", "train.epochs=1", "train.compile=true")
    result = ended(buildah, theirs, *words, user="4242:4242")
    assert result.code == 0, result
    assert (theirs / "digits_dsr/summary.json").stat().st_uid == 4242


def a_live_run(buildah: Buildah, runs: Path) -> None:
    """It is healthy, no other gets its folder, and `docker stop` leaves a checkpoint."""
    long = ("--config", "configs/digits_dsr.yaml", "name=long", "train.epochs=100000", "log.progress=lines")
    with Container(buildah, IMAGE, *long, volumes={runs: RUNS}) as run:
        run.wait_for("epoch 2/")
        assert run.is_healthy().code == 0, run.is_healthy()
        second = ended(buildah, runs, *long, "--resume", "auto")
        print(f"     a second one: {second.code}, {second.err.strip()}")
        assert second.code == 2, second
        assert "is in use by" in second.err
        assert second.err.count("\n") == 1, second
        run.kill(signal.SIGTERM)
        stopped = run.end()
    print(f"     SIGTERM to its first process: {stopped.code}")
    assert stopped.code == 75, stopped
    assert json.loads((runs / "long/summary.json").read_text())["status"] == "stopped"


def tensorboard(buildah: Buildah, runs: Path) -> None:
    """It answers, and is not well when it does not."""
    if buildah.isolation[1] == "chroot":
        print("     left out: a chroot has the network and the process 1 of this machine; apt-get install runc")
        return
    words = ("tensorboard", "--logdir", "runs", "--host", "0.0.0.0")
    with Container(buildah, IMAGE, *words, volumes={runs: RUNS}) as board:
        board.wait_for("Press CTRL+C")
        assert board.is_healthy().code == 0, board.is_healthy()
        board.kill(signal.SIGSTOP)
        assert board.is_healthy().code == 1, "a TensorBoard that does not answer passes for a healthy one"
        board.kill(signal.SIGCONT)
        board.kill(signal.SIGTERM)
        board.end()


def give(folder: Path, user: int) -> None:
    folder.mkdir()
    os.chown(folder, user, user)


@contextmanager
def timed(what: str) -> Iterator[None]:
    print(f"...  {what}", flush=True)
    began = time.monotonic()
    yield
    print(f"ok   {what} ({time.monotonic() - began:.1f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
