"""Wheels for a machine without package indexes, in pieces that can be carried there one by one.

    python -m benchmarks.carry pack DIR                     (where there is an index: wheels that the other lacks)
    python -m benchmarks.carry pack DIR --dali              (and DALI's, without the backends of other Pythons)
    python benchmarks/carry.py install DIR                  (over there, with its Python; needs pip alone)

`pack` finds what the library and its extra `train` need, leaves out what --has names, and writes to DIR pieces of at
most --mib MiB and SHA256SUMS, the list of them in order. `install` looks at each piece, joins them, and installs the
wheels with `pip --no-index`; it ends with 2 and one line if a piece is missing or damaged.

pip asks for markers of its own Python, not of --python: run `pack` with one that is not far from it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
LIST, WHOLE = "SHA256SUMS", "wheels.tar"
HAS = ("torch", "torchvision", "timm", "pytest", "tensorboard", "numpy", "pillow")
"""Packages that the other machine has by default."""
DALI = re.compile(r"nvidia-dali")
GLIBC_MINORS = range(28, 11, -1)
"""manylinux_2_28 to 2_12: pip takes wheels of the platforms that are named, and of no older ones."""
BLOCK = 1 << 20
_BACKEND = re.compile(r"\.cpython-(\d+t?)-")
"""Python that a compiled file is for, in its name."""


class CarryError(Exception):
    """A line for the user."""


def main() -> None:
    asked = _parse()
    try:
        asked.act(asked)
    except CarryError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    packing = verbs.add_parser("pack", help="download wheels, and write them in pieces")
    packing.add_argument("folder", metavar="DIR", type=Path, help="folder to write; it must be new or empty")
    packing.add_argument("--python", metavar="X.Y", default="3.12", help="of the other machine (3.12)")
    packing.add_argument("--machine", default="x86_64", help="its processor (x86_64); it runs Linux")
    packing.add_argument("--has", metavar="NAME", nargs="*", default=HAS, help=f"packages there ({' '.join(HAS)})")
    packing.add_argument("--extra", metavar="NAME", nargs="*", default=["train"], help="extras of the project (train)")
    packing.add_argument("--more", metavar="NAME", nargs="*", default=[], help="packages beside the project's")
    packing.add_argument("--dali", action="store_true", help="carry DALI too")
    packing.add_argument("--wheels", metavar="FOLDER", type=Path, help="take wheels from there, and from no index")
    packing.add_argument("--mib", metavar="N", type=int, default=50, help="MiB of a piece at most (50)")
    packing.set_defaults(act=pack)
    installing = verbs.add_parser("install", help="install the wheels of these pieces")
    installing.add_argument("folder", metavar="DIR", type=Path, help="folder that holds the pieces and their list")
    installing.add_argument("--target", metavar="FOLDER", type=Path, help="install there, as pip's option does")
    installing.set_defaults(act=install)
    return parser.parse_args()


# Where there is an index


def pack(asked: argparse.Namespace) -> None:
    """Download what the other machine lacks, and write it in pieces. Raises CarryError."""
    if asked.folder.is_dir() and any(asked.folder.iterdir()):
        raise CarryError(f"{asked.folder} is not empty: give a new folder")
    if asked.mib < 1:
        raise CarryError(f"--mib is {asked.mib}: it must be at least 1")
    needed = [*requirements(ROOT / "pyproject.toml", asked.extra), *asked.more]
    there = set(map(_normal, asked.has))
    wanted = [one for one in needed if _name(one) not in there and (asked.dali or not DALI.match(_name(one)))]
    with TemporaryDirectory() as folder:
        wheels = _downloaded(asked, wanted, there, Path(folder))
        asked.folder.mkdir(parents=True, exist_ok=True)
        pieces = split([slimmed(wheel, asked.python) for wheel in wheels], asked.folder, asked.mib << 20)
    megabytes = sum((asked.folder / piece).stat().st_size for piece in pieces) / 1e6
    print(f"{asked.folder}: {len(wheels)} wheels of {megabytes:.0f} MB in {len(pieces)} pieces, listed in {LIST}")


def requirements(project: Path, extras: Sequence[str]) -> list[str]:
    """Return the requirements of a project and of some of its extras."""
    try:
        tomllib = import_module("tomllib")
    except ModuleNotFoundError:
        raise CarryError("pack takes Python 3.11 or newer, which reads pyproject.toml") from None
    tables = tomllib.loads(project.read_text())["project"]
    optional = tables["optional-dependencies"]
    if unknown := set(extras) - optional.keys():
        raise CarryError(f"--extra names {', '.join(sorted(unknown))}; there are {', '.join(optional)}")
    return [*tables["dependencies"], *(one for extra in extras for one in optional[extra])]


def _downloaded(asked: argparse.Namespace, wanted: Sequence[str], there: set[str], folder: Path) -> list[Path]:
    """Let pip say all that is needed, which downloads little, then download what is not there."""
    platforms = [f"manylinux_2_{minor}_{asked.machine}" for minor in GLIBC_MINORS]
    platforms += [f"manylinux2014_{asked.machine}", f"linux_{asked.machine}"]
    index = [] if asked.wheels is None else ["--no-index", "--find-links", str(asked.wheels)]
    where = ["--only-binary=:all:", "--implementation=cp", f"--python-version={asked.python}", *index]
    where += [f"--platform={platform}" for platform in platforms]
    report = folder / "report.json"
    limits = ["-c", str(ROOT / "constraints.txt")] if asked.wheels is None else []
    asking = ["--dry-run", "--ignore-installed", "--report", str(report), "--target", str(folder / "nowhere")]
    _pip("install", *asking, *where, *limits, *wanted)
    chosen = [
        (one["metadata"]["name"], one["metadata"]["version"]) for one in json.loads(report.read_text())["install"]
    ]
    missing = [f"{name}=={version}" for name, version in chosen if _normal(name) not in there]
    (folder / "wheels").mkdir()
    if missing:
        _pip("download", "--no-deps", "--dest", str(folder / "wheels"), *where, *missing)
    return sorted((folder / "wheels").glob("*.whl"))


def _pip(*words: str) -> None:
    """Run pip. Raises CarryError with its last line."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise CarryError(f"pip {words[0]} failed: {lines[-1].removeprefix('ERROR: ')}")


def slimmed(wheel: Path, python: str) -> Path:
    """Leave compiled files for other Pythons out of a wheel that serves several, such as DALI's: it is rewritten."""
    kept_tag = python.replace(".", "")
    with zipfile.ZipFile(wheel) as before:
        others = {name for name in before.namelist() if (tag := _BACKEND.search(name)) and tag[1] != kept_tag}
        if not others:
            return wheel
        draft = wheel.with_suffix(".draft")
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as after:
            for entry in before.infolist():
                if entry.filename.endswith(".dist-info/RECORD"):
                    after.writestr(entry, _record_without(before.read(entry).decode(), others), zipfile.ZIP_DEFLATED)
                elif entry.filename not in others:
                    after.writestr(entry, before.read(entry), zipfile.ZIP_DEFLATED)
    return draft.replace(wheel)


def _record_without(record: str, others: set[str]) -> str:
    """Return a wheel's list of files, in CSV, without some."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        row for row in csv.reader(record.splitlines()) if row[0] not in others
    )
    return text.getvalue()


def split(wheels: Sequence[Path], folder: Path, most: int) -> list[str]:
    """Write the wheels to pieces of at most `most` bytes, and the list of their checksums. Returns their names."""
    whole = folder / WHOLE
    with tarfile.open(whole, "w") as tar:
        for wheel in wheels:
            tar.add(wheel, wheel.name)
    names: list[str] = []
    with open(whole, "rb") as file:
        while content := file.read(most):
            names.append(f"{WHOLE}.{len(names):03}")
            (folder / names[-1]).write_bytes(content)
    sums = {name: _sum(folder / name) for name in [*names, WHOLE]}
    whole.unlink()
    (folder / LIST).write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
    return names


# Over there


def install(asked: argparse.Namespace) -> None:
    """Install the wheels of the pieces. Raises CarryError."""
    with TemporaryDirectory() as folder:
        wheels = joined(asked.folder, Path(folder))
        target = [] if asked.target is None else ["--target", str(asked.target)]
        _pip("install", "--no-index", "--no-deps", *target, *map(str, wheels))
    print(f"installed {len(wheels)} wheels: {', '.join(wheel.name.split('-')[0] for wheel in wheels)}")


def joined(folder: Path, to: Path) -> list[Path]:
    """Look at each piece, and unpack the wheels. Raises CarryError."""
    if not (folder / LIST).is_file():
        raise CarryError(f"{folder} has no {LIST}: carry it too, or give the folder that `pack` wrote")
    lines = (line.partition("  ") for line in (folder / LIST).read_text().splitlines())
    sums = {name: value for value, _, name in lines}
    expected = sums.pop(WHOLE, None)
    paths = [folder / name for name in sums]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise CarryError(f"{folder} lacks {', '.join(absent)} of {len(paths)} pieces: carry what is missing")
    for path in paths:
        if _sum(path) != sums[path.name]:
            raise CarryError(f"{path} is damaged: its checksum is not that of {LIST}; carry it again")
    whole = to / WHOLE
    with open(whole, "wb") as file:
        for path in paths:
            file.write(path.read_bytes())
    if _sum(whole) != expected:
        raise CarryError(f"{folder / LIST} is damaged: it does not list all pieces in order; carry it again")
    with tarfile.open(whole) as tar:
        tar.extractall(to, filter="data")
    return sorted(to.glob("*.whl"))


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _name(requirement: str) -> str:
    """Return the package that a requirement names."""
    return _normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def _normal(name: str) -> str:
    """Return a package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
