"""A manifest's pod on this machine: a host of tests/hosts.py in which its containers run as the manifest says.

With its command, arguments and variables, user and groups, without capabilities, a root file system that cannot be
written to, and the volumes where it mounts them: a claim is a folder. The image is a copy of the project with this
machine's programs around it. There is no cluster: what its controllers would add is given here, by their rules.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hosts import Host
from tests.launch import manifests
from tests.training.runs import ROOT, children

WORKING_FOLDER = "/dynsparse"
_OF_THE_IMAGE = {"HOME": "/tmp", "USER": "dynsparse", "PYTHONPATH": WORKING_FOLDER, "PYTHONUNBUFFERED": "1"}
"""Variables that the Dockerfile sets."""
_PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"
_UNITS = {"Mi": "m", "Gi": "g"}

# Its mounts are seen by nobody else, and go when it ends. $1: where the image is put together; then pairs of options
# and folders to mount, "--", and what to run.
_CONTAINER = """
root=$1; shift
mount -t tmpfs -o mode=755 image "$root"
while [ "$1" != -- ]; do
    options=$1 from=$2 to=$root$3; shift 3
    if [ -L "$from" ]; then cp -d "$from" "$to"; continue; fi
    mkdir -p "$to"
    case $options in
        tmpfs*) mount -t tmpfs -o "${options#tmpfs,}" volume "$to" ;;
        *) mount --rbind "$from" "$to" && mount -o "remount,bind,$options" "$to" ;;
    esac
done
shift
mount -o remount,ro "$root"
exec chroot "$root" /bin/sh -ec 'cd "$0"; exec "$@"' "$@"
"""


def make_image(folder: Path) -> Path:
    """Make a folder of the files that the Dockerfile copies, with folders for the volumes."""
    for name in ("configs", "dynsparse", "launch", "pipelines"):
        shutil.copytree(ROOT / name, folder / name)  # With what Python has compiled: containers cannot keep theirs.
    shutil.copy(ROOT / "dist_train.py", folder)
    for name in ("runs", "data"):
        (folder / name).mkdir()
    return folder


def give_to_group(folder: Path, group: int) -> None:
    """Give a volume to a group, as fsGroup does."""
    shutil.chown(folder, group=group)
    folder.chmod(0o2775)


@dataclass
class Pod:
    """`labels`: all that it has, those too that controllers give it."""

    spec: dict[str, Any]
    host: Host
    name: str
    image: Path
    claims: dict[str, Path]
    labels: dict[str, str]

    def boot(self, names: Path) -> None:
        """Give the host the pod's name, and its own list of names in place of DNS: at first its own alone."""
        names.write_text(f"127.0.0.1 localhost\n{self.host.address} {self.name}\n")
        self._names = names
        script = 'echo "$1" > /proc/sys/kernel/hostname; mount --bind "$2" /etc/hosts'
        done = self.host.start("sh", "-ec", script, "sh", self.name, names)
        out, _ = done.communicate(timeout=60)
        assert done.returncode == 0, out

    def look_up(self, name: str, address: str) -> None:
        """Let the host look up a name from now on."""
        with self._names.open("a") as file:
            file.write(f"{address} {name}\n")

    def environment(self, container: dict[str, Any]) -> dict[str, str]:
        variables: dict[str, str] = {}
        for entry in container.get("env", []):
            if "valueFrom" in entry:
                path = entry["valueFrom"]["fieldRef"]["fieldPath"]
                label = re.fullmatch(r"metadata\.labels\['(.*)'\]", path)
                assert label is not None, path
                variables[entry["name"]] = self.labels[label[1]]
            else:
                variables[entry["name"]] = manifests.expand(entry["value"], variables)
        return variables

    def command(self, container: dict[str, Any], *more: str) -> list[str]:
        variables = self.environment(container)
        words = [*container["command"], *container.get("args", []), *more]
        return [manifests.expand(word, variables) for word in words]

    def start(self, container: dict[str, Any], log: Path, *more: str) -> subprocess.Popen[str]:
        """Run a container, `more` after its arguments."""
        root = self.image.with_name(f"{self.name}-{container['name']}")
        root.mkdir(exist_ok=True)
        variables = {"PATH": _PATH, **_OF_THE_IMAGE, **self.environment(container)}
        return self.host.start(
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("bash", "-ec", _CONTAINER, "bash", root, *self._mounts(container), "--", WORKING_FOLDER),
            *("setpriv", *self._privileges(container), "env", "-i"),
            *(f"{name}={value}" for name, value in variables.items()),
            *self.command(container, *more),
            log=log,
        )

    def _privileges(self, container: dict[str, Any]) -> list[str]:
        of_pod, own = self.spec["securityContext"], container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert not own["allowPrivilegeEscalation"]
        user, group, volumes = (str(of_pod[name]) for name in ("runAsUser", "runAsGroup", "fsGroup"))
        ids = [f"--reuid={user}", f"--regid={group}", f"--groups={volumes}"]
        return [*ids, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]

    def _mounts(self, container: dict[str, Any]) -> list[str]:
        """Three words each: options, from where, to where."""
        mounts = [("ro", path, path) for path in ("/bin", "/lib", "/lib64", "/usr", "/etc")]
        mounts += [("rw", path, path) for path in ("/dev", "/proc", "/sys")]
        mounts.append(("ro", str(self.image), WORKING_FOLDER))
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in container.get("volumeMounts", []):
            mounts.append((*self._volume(volumes[mount["name"]], mount), mount["mountPath"]))
        # After the volumes: this environment may lie in /tmp, which is one. It may be a link, and its programs begin
        # with the path where it was made.
        real = str(Path(sys.prefix).resolve())
        mounts += [("ro", str(Path(path).resolve()), path) for path in {sys.base_prefix, sys.prefix, real}]
        return [word for mount in mounts for word in mount]

    def _volume(self, volume: dict[str, Any], mount: dict[str, Any]) -> tuple[str, str]:
        if "emptyDir" in volume:
            size = volume["emptyDir"]["sizeLimit"]
            return f"tmpfs,mode=1777,size={size[:-2]}{_UNITS[size[-2:]]}", "-"
        claim = volume["persistentVolumeClaim"]
        read_only = mount.get("readOnly", False) or claim.get("readOnly", False)
        return "ro" if read_only else "rw", str(self.claims[claim["claimName"]])


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM to a container's first process, as the kubelet stops it."""
    os.kill(_first(process), signal.SIGTERM)


def probe(process: subprocess.Popen[str], command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a container that runs, as the kubelet does to see how it fares."""
    enter = ["nsenter", f"--target={_first(process)}", "--mount", "--uts", "--net", "--pid", "--root", "--wd"]
    variables = {"PATH": _PATH, **_OF_THE_IMAGE}
    return subprocess.run([*enter, *command], env=variables, capture_output=True, text=True, timeout=60, check=False)


def _first(process: subprocess.Popen[str]) -> int:
    """The number here of the process that has the number 1 in a container."""
    pid = process.pid
    while _depth(pid) < 3:  # This machine, the host, the container.
        assert process.poll() is None, "the container has ended"
        pid = next(iter(children(pid)), pid)  # It may not have come to that yet.
    return pid


def _depth(pid: int) -> int:
    """Number of process namespaces in which a process has a number, from this one on."""
    status = Path(f"/proc/{pid}/status").read_text()
    return len(re.findall(r"^NSpid:(.*)$", status, re.MULTILINE)[0].split())
