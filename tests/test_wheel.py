"""The wheel works from an empty folder: training, report and export, with the configs inside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pipelines.common.extras import install_command

ROOT = Path(__file__).parents[1]


def call(*words: object, folder: Path, **variables: str) -> str:
    """Return what a program prints. Fails with its errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = list(map(str, words))
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def installed(folder: Path) -> Path:
    """Build the wheel from a copy of what git knows and unpack it; returns the folder of packages."""
    names = call("git", "ls-files", "-z", folder=ROOT).split("\0")
    for name in filter(None, names):
        target = folder / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    call(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, ".", folder=folder / "copy")
    (wheel,) = folder.glob("*.whl")
    packages = folder / "packages"
    call(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", packages, wheel, folder=folder)
    return packages


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs git, and its checkout")
def test_the_wheel_works_from_an_empty_folder(tmp_path: Path) -> None:
    """`-S` keeps the project's own editable install out; the packages it depends on come by PYTHONPATH."""
    path = os.pathsep.join([str(installed(tmp_path)), sysconfig.get_path("purelib")])
    folder = tmp_path / "empty"
    folder.mkdir()

    def dynsparse(*words: str) -> str:
        return call(sys.executable, "-S", "-m", "dynsparse", *words, folder=folder, PYTHONPATH=path)

    where = call(
        sys.executable, "-S", "-c", "import dynsparse; print(dynsparse.__file__)", folder=folder, PYTHONPATH=path
    )
    assert where.startswith(str(tmp_path))
    dynsparse("train", "--config", "configs/digits_dsr.yaml", "train.epochs=1", "method.stop_epoch=1")
    dynsparse("report", "runs/digits_dsr")
    dynsparse("export", "runs/digits_dsr", "--format", "safetensors")
    assert (folder / "runs/digits_dsr/report.html").exists()
    assert list(folder.glob("*.safetensors"))


@pytest.mark.parametrize(("verb", "extra"), [("train", "train"), ("report", "report"), ("scan", "train")])
def test_a_missing_extra_is_named_in_one_line(verb: str, extra: str) -> None:
    """Hide Jinja2 and tqdm, as an install without extras does."""
    hide = "import importlib.util as u; real = u.find_spec; u.find_spec = lambda n, *a: "
    hide += "None if n in ('jinja2', 'tqdm') else real(n, *a); "
    code = f"{hide}import sys; sys.argv = ['dynsparse', '{verb}']; from dynsparse.cli.main import program; program()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {verb}: ")
    assert result.stderr.endswith(f"not installed; a plain install has the library alone: {install_command(extra)}\n")
    assert result.stderr.count("\n") == 1
