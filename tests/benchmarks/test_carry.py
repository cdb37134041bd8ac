"""Wheels are carried in pieces: packed, joined, installed; a piece that is missing or damaged is refused."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks.carry import requirements, slimmed

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def wheel(folder: Path, name: str, files: dict[str, bytes], tag: str = "py3-none-any") -> Path:
    """Build a wheel of version 1.0."""
    files = {
        **files,
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{name}-1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    rows = [
        (path, f"sha256={urlsafe_b64encode(sha256(body).digest()).rstrip(b'=').decode()}", len(body))
        for path, body in files.items()
    ]
    text = io.StringIO()
    csv.writer(text).writerows([*rows, (f"{name}-1.0.dist-info/RECORD", "", "")])
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, body in {**files, f"{name}-1.0.dist-info/RECORD": text.getvalue().encode()}.items():
            archive.writestr(member, body)
    return path


def carry(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script as a file, as on a machine that has nothing of the project installed."""
    command = [sys.executable, "-I", ROOT / "benchmarks" / "carry.py"]
    return subprocess.run([*command, *words], cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pieces of 1 MiB at most: a small package, and one of 2 MiB beside it that is named as DALI is."""
    work = tmp_path_factory.mktemp("carry")
    wheel(work / "wheels", "small_one", {"small_one.py": b"ANSWER = 42\n"})
    backends = {f"nvidia/dali/backend.cpython-{tag}-x86_64-linux-gnu.so": b"x" for tag in ("311", "312", "313t")}
    large = {"nvidia/dali/libdali.so": os.urandom(2 * MIB), **backends}
    wheel(work / "wheels", "nvidia_dali_cuda130", large, "py3-none-manylinux_2_28_x86_64")
    options = ["--wheels", work / "wheels", "--extra", "--has", "numpy", "pydantic", "torch", "--mib", "1", "--dali"]
    done = carry("pack", work / "pieces", *options, "--more", "small-one", "nvidia-dali-cuda130")
    assert done.returncode == 0, done.stderr
    return work / "pieces"


def test_what_was_packed_can_be_imported(pieces: Path, tmp_path: Path) -> None:
    files = sorted(path.name for path in pieces.iterdir())
    assert files == ["SHA256SUMS", "wheels.tar.000", "wheels.tar.001", "wheels.tar.002"]
    assert max(path.stat().st_size for path in pieces.iterdir()) <= MIB
    done = carry("install", pieces, "--target", tmp_path / "there")
    assert (done.returncode, done.stdout) == (0, "installed 2 wheels: nvidia_dali_cuda130, small_one\n"), done.stderr
    ask = [sys.executable, "-c", "import small_one; print(small_one.ANSWER)"]
    answer = subprocess.run(ask, cwd=tmp_path / "there", capture_output=True, text=True, check=True)
    assert answer.stdout == "42\n"
    backends = sorted(path.name for path in (tmp_path / "there" / "nvidia" / "dali").iterdir())
    assert backends == ["backend.cpython-312-x86_64-linux-gnu.so", "libdali.so"]


def copied(pieces: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in pieces.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        ("damaged", "error: {}/wheels.tar.001 is damaged: its checksum is not that of SHA256SUMS; carry it again"),
        ("missing", "error: {} lacks wheels.tar.001 of 3 pieces: carry what is missing"),
        ("not listed", "error: {}/SHA256SUMS is damaged: it does not list all pieces in order; carry it again"),
        ("no list", "error: {} has no SHA256SUMS: carry it too, or give the folder that `pack` wrote"),
    ],
)
def test_a_piece_that_is_not_whole_is_refused(pieces: Path, tmp_path: Path, harm: str, line: str) -> None:
    folder = copied(pieces, tmp_path / "pieces")
    piece, sums = folder / "wheels.tar.001", folder / "SHA256SUMS"
    if harm == "damaged":
        content = bytearray(piece.read_bytes())
        content[1000] ^= 1
        piece.write_bytes(content)
    elif harm == "missing":
        piece.unlink()
    elif harm == "not listed":
        sums.write_text("".join(row for row in sums.read_text().splitlines(keepends=True) if piece.name not in row))
    else:
        sums.unlink()
    done = carry("install", folder, "--target", tmp_path / "there")
    assert (done.returncode, done.stderr) == (2, line.format(folder) + "\n")
    assert not (tmp_path / "there").exists()


def test_a_wheel_of_one_python_is_left_as_it_is(tmp_path: Path) -> None:
    path = wheel(tmp_path, "compiled", {"compiled.cpython-312-x86_64-linux-gnu.so": b"x"}, "cp312-cp312-linux_x86_64")
    before = path.read_bytes()
    assert slimmed(path, "3.12").read_bytes() == before


def test_a_slimmed_wheel_lists_what_it_has(tmp_path: Path) -> None:
    names = [f"several.cpython-{tag}-x86_64-linux-gnu.so" for tag in ("312", "312t", "313")]
    path = wheel(tmp_path, "several", dict.fromkeys(names, b"x"))
    assert slimmed(path, "3.12") == path
    with zipfile.ZipFile(path) as archive:
        record = archive.read("several-1.0.dist-info/RECORD").decode()
        assert sorted(row[0] for row in csv.reader(record.splitlines())) == sorted(archive.namelist())
        assert names[0] in archive.namelist() and not set(names[1:]) & set(archive.namelist())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="`pack` reads pyproject.toml")
def test_the_projects_requirements_are_those_of_its_file() -> None:
    found = requirements(ROOT / "pyproject.toml", ["train"])
    assert any(one.startswith("pydantic>=") for one in found) and any(one.startswith("scikit-learn>=") for one in found)


def test_what_pip_does_not_find_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    done = carry("pack", tmp_path / "pieces", "--wheels", tmp_path / "wheels", "--extra", "--has", "numpy", "torch")
    assert done.returncode == 2 and done.stderr.startswith("error: pip install failed: No matching distribution found")
    assert done.stderr.count("\n") == 1
