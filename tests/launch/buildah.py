"""Images and containers with buildah, which needs no Docker engine: for the proof of the Dockerfile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

OWN_WORDS = re.compile(r"(Error: .*exit status \d+|subprocess exited with status \d+)\n")
"""Lines that buildah adds to the errors of a command that ends with another code than 0."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Buildah:
    """Its storage is a folder of its own; layers are shared where the kernel lets it mount overlays, else copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(parents=True)
        self.environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        self.storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run"), "--storage-driver"]
        self.storage.append("overlay")
        if self.process("info").returncode != 0:
            self.storage[-1] = "vfs"
        # The name that it would give the chroot means nothing in the network of the machine, which it shares.
        self.isolation = ["--isolation", "chroot", "--hostname", "localhost"]

    def command(self, *words: Any) -> list[str]:
        return ["buildah", *self.storage, *map(str, words)]

    def process(self, *words: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True, check=False)

    def __call__(self, *words: Any) -> str:
        """Run a command of buildah, and return its output. RuntimeError with its last words if it fails."""
        result = self.process(*words)
        if result.returncode != 0:
            raise RuntimeError(f"buildah {words[0]} ended with code {result.returncode}:\n{result.stderr[-3000:]}")
        return result.stdout.strip()

    def isolate(self, image: str) -> str:
        """Find and tell how containers are kept apart: as Docker's are where an OCI runtime works, else by chroot."""
        container = self("from", image)
        for runtime in filter(shutil.which, ("runc", "crun")):
            isolation = ["--isolation", "oci", "--runtime", runtime]
            if self.process("run", *isolation, container, "true").returncode == 0:
                self.isolation = isolation
                break
        self("rm", container)
        return " ".join(self.isolation)

    def settings(self, image: str) -> dict[str, Any]:
        """Settings of an image, as Docker knows them."""
        settings: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["Docker"]["config"]
        return settings

    def size(self, image: str) -> int:
        """Bytes of all layers, unpacked."""
        row: list[dict[str, Any]] = json.loads(self("images", "--json", image))
        number, unit = row[0]["size"].split()
        return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])

    def remove(self) -> None:
        self.process("umount", "--all")
        self.process("rm", "--all")
        shutil.rmtree(self.folder)


class Container:
    """A command in a container of its own, begun as `docker run IMAGE WORDS` would begin it."""

    def __init__(
        self,
        buildah: Buildah,
        image: str,
        *words: str,
        volumes: Mapping[Path, str] | None = None,
        user: str | None = None,
    ) -> None:
        settings = buildah.settings(image)
        self.buildah = buildah
        self.healthcheck: list[str] = settings["Healthcheck"]["Test"][1:]
        self._mark = f"CONTAINER={uuid4().hex}"
        self._name = buildah("from", image)
        options = [f"--volume={host}:{inside}" for host, inside in (volumes or {}).items()]
        options += [f"--user={user}"] if user else []
        command = settings["Entrypoint"] + (list(words) or settings["Cmd"])
        self._log = buildah.folder / f"{self._name}.out", buildah.folder / f"{self._name}.err"
        with self._log[0].open("w") as out, self._log[1].open("w") as err:
            self._process = subprocess.Popen(
                buildah.command("run", *buildah.isolation, "--env", self._mark, *options, self._name, "--", *command),
                env=buildah.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes():
            os.kill(process, signal.SIGKILL)
        self._process.wait()
        self.buildah.process("rm", self._name)

    @property
    def out(self) -> str:
        return self._log[0].read_text()

    @property
    def err(self) -> str:
        return OWN_WORDS.sub("", self._log[1].read_text())

    def end(self) -> Ended:
        code = self._process.wait()
        return Ended(code, self.out, self.err)

    def wait_for(self, words: str, seconds: float = 180) -> None:
        """Wait until it has written these words."""
        deadline = time.monotonic() + seconds
        while words not in self.out + self.err:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no '{words}' of\n{self.out}{self.err}")
            time.sleep(0.2)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the container's first process, as `docker kill` and `docker stop` do."""
        os.kill(self.first_process, number)

    @property
    def first_process(self) -> int:
        """Process number of the container's first process on this machine."""
        return min(self._processes(), key=lambda process: int(_stat(process)[19]))

    def is_healthy(self) -> Ended:
        """Run the image's HEALTHCHECK, as `docker exec` would."""
        process = self.first_process
        status = Path(f"/proc/{process}/status").read_text()
        user, group = (re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[1] for key in ("Uid", "Gid"))  # type: ignore[index]
        words = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
        enter = ["nsenter", f"--target={process}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        result = subprocess.run(
            [*enter, f"--setuid={user}", f"--setgid={group}", *self.healthcheck],
            env=dict(word.split("=", 1) for word in words if "=" in word),
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(result.returncode, result.stdout, result.stderr)

    def _processes(self) -> list[int]:
        """All in the container, by their numbers outside."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self._mark.encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, its name left out."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
