"""The image, as far as it can be judged without building it, and the whole proof where buildah is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
import yaml

from dynsparse.training.run.holder import Holder
from dynsparse.training.run.lock import RunLock
from tests.launch.buildah import Buildah
from tests.launch.prove_compose import compose_tool
from tests.training import runs

DOCKERFILE = runs.ROOT / "Dockerfile"
COMPOSE = runs.ROOT / "launch/compose.yaml"
ENTRY = runs.ROOT / "launch/container/entry.sh"
HEALTHCHECK = runs.ROOT / "launch/container/healthcheck.py"

needs_buildah = pytest.mark.skipif(
    shutil.which("buildah") is None or os.geteuid() != 0, reason="needs buildah, and root to use it"
)


def call(*words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


# -- Dockerfile ------------------------------------------------------------------------------------


def instructions(name: str) -> list[str]:
    """The arguments of each instruction of this name, continued lines joined."""
    lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"{name} ")]


def test_hadolint() -> None:
    result = call(Path(sys.executable).with_name("hadolint"), DOCKERFILE)
    assert result.returncode == 0, result.stdout


def test_every_install_is_constrained() -> None:
    installs = [words for words in instructions("RUN") if "pip install" in words]
    assert installs
    for words in installs:
        assert words.count("pip install") == words.count("--constraint constraints.txt"), words


def test_what_is_copied_is_there() -> None:
    sources = [source for words in instructions("COPY") if "--from" not in words for source in words.split()[:-1]]
    assert sources
    for source in sources:
        assert (runs.ROOT / source).exists(), source
    for line in (runs.ROOT / ".dockerignore").read_text().splitlines():
        assert not line.startswith("!") or (runs.ROOT / line[2:]).exists(), line


def test_the_default_command_is_make_demo() -> None:
    (command,) = (yaml.safe_load(words) for words in instructions("CMD") if "local.sh" in words)
    makefile = (runs.ROOT / "Makefile").read_text()
    demo = re.search(r"^demo: .*\n\t(.*)", makefile, re.MULTILINE)
    assert demo is not None
    assert shlex.split(demo[1])[1:] == command


@needs_buildah
def test_what_goes_into_the_image(tmp_path: Path) -> None:
    """Files are chosen by .dockerignore as buildah reads it, which is as Docker does."""
    kept = ["LICENSE", "configs/a.yaml", "dist_train.py", "dynsparse/deep/a.py", "launch/local.sh", "pipelines/a.py"]
    left = [
        *(".env", ".git/config", ".venv/bin/python", "data/digits/a.png", "dynsparse/__pycache__/a.pyc", "id_rsa"),
        *("launch/.env", "pipelines/.cache/a", "runs/a/summary.json", "sub/configs/a.yaml", "tests/a.py"),
    ]
    context = tmp_path / "context"
    for name in kept + left:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).touch()
    shutil.copy(runs.ROOT / ".dockerignore", context)
    recipe = tmp_path / "Dockerfile"
    recipe.write_text("FROM scratch\nCOPY . /\n")
    buildah = Buildah(tmp_path / "buildah")
    try:
        buildah("bud", "--isolation=chroot", f"--output=type=local,dest={tmp_path}/copied", f"--file={recipe}", context)
    finally:
        buildah.remove()
    copied = {str(path.relative_to(tmp_path / "copied")) for path in (tmp_path / "copied").rglob("*") if path.is_file()}
    assert copied == set(kept)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_buildah
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="needs debootstrap, for a base image")
def test_the_image() -> None:
    result = subprocess.run([sys.executable, "-m", "tests.launch.prove_image"], cwd=runs.ROOT, check=False)
    assert result.returncode == 0


# -- what runs first in it -------------------------------------------------------------------------


def test_arguments_go_to_the_launcher() -> None:
    result = call(ENTRY, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: launch/local.sh")


def test_a_command_takes_the_place_of_the_shell() -> None:
    process = subprocess.Popen([ENTRY, "bash", "-c", "echo $$; exit 3"], stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0] == f"{process.pid}\n"
    assert process.returncode == 3


def test_an_unknown_command_is_one_line() -> None:
    result = call(ENTRY, "trian")
    assert result.returncode == 2
    assert result.stderr == (
        "error: there is no command 'trian'; give one of this image, such as launch/local.sh, or --config FILE\n"
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", ENTRY], check=True)


# -- healthcheck -----------------------------------------------------------------------------------


def health(folder: Path) -> tuple[int, str]:
    result = call(sys.executable, HEALTHCHECK, folder, PYTHONPATH=str(runs.ROOT))
    assert result.stderr == ""
    return result.returncode, result.stdout


def test_who_shows_life_is_well(tmp_path: Path) -> None:
    assert health(tmp_path) == (0, "well\n")
    lock = RunLock(tmp_path / "a")
    lock.acquire()
    try:
        assert health(tmp_path) == (0, "well\n")
    finally:
        lock.release()


def test_a_holder_without_a_sign_of_life_is_told(tmp_path: Path) -> None:
    """This process is there, and was last heard of long ago."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/lock.json").write_bytes(Holder.myself(None).encode("2026-01-01T00:00:00+00:00"))
    code, said = health(tmp_path)
    assert code == 1
    assert said.startswith(f"{tmp_path}/a: no sign of life of process {os.getpid()} on ")


def test_a_holder_that_is_gone_or_elsewhere_is_no_matter(tmp_path: Path) -> None:
    """One is started anew by torchrun; the other's container has a healthcheck of its own."""
    script = (
        "import sys; from dynsparse.training.run.holder import Holder; "
        "sys.stdout.buffer.write(Holder.myself(None).encode('2026-01-01T00:00:00+00:00'))"
    )
    gone = call(sys.executable, "-c", script, PYTHONPATH=str(runs.ROOT)).stdout
    assert Holder.decode(gone.encode()) is not None
    for name, content in {"gone": gone, "elsewhere": gone.replace("pid:", "pid:1"), "half": gone[:20]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock.json").write_text(content)
    assert health(tmp_path) == (0, "well\n")


@pytest.fixture(scope="module")
def healthcheck() -> ModuleType:
    spec = spec_from_file_location("healthcheck", HEALTHCHECK)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


def test_tensorboard_is_well_while_it_answers(healthcheck: ModuleType) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    command = f"/opt/venv/bin/python /opt/venv/bin/tensorboard --logdir runs --port {server.server_port} "
    try:
        assert list(healthcheck.mute_tensorboard(command)) == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (problem,) = healthcheck.mute_tensorboard(command)
    assert problem.startswith(f"TensorBoard does not answer at http://127.0.0.1:{server.server_port}/ (")
    train = "bash launch/local.sh --config configs/digits_dsr.yaml"
    for words in ("--port 1", "log.tensorboard=false", "log.tensorboard=true --port 1", "name=tensorboard_test"):
        assert list(healthcheck.mute_tensorboard(f"{train} {words} ")) == []


# -- compose.yaml ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    composed: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return composed


def test_the_schema_of_compose() -> None:
    result = call(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    assert result.returncode == 0, result.stdout


def words_of(service: dict[str, Any]) -> list[str]:
    """Its command, with the defaults of its variables."""
    return shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["command"]))


def test_services(compose: dict[str, Any]) -> None:
    services, networks = compose["services"], compose["networks"]
    assert set(services) == {"train", "tensorboard", "node0", "node1"}
    assert services["tensorboard"]["ports"] == ["127.0.0.1:6006:6006"], "reachable from this machine alone"
    (gpus,) = services["train"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpus == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    for name in ("train", "node0", "node1"):
        service, words = services[name], words_of(services[name])
        assert "ports" not in service
        assert all(networks[network]["internal"] for network in service["networks"]), "workers trust who reaches them"
        assert (runs.ROOT / words[0]).exists()
        assert (runs.ROOT / words[words.index("--config") + 1]).exists()
        assert "--resume" in words, "started again, it goes on"
    head = [words_of(services[name])[4] for name in ("node0", "node1")]
    assert head == ["node0", "node0"]
    assert services["node0"] == services["node1"]


def test_workers_have_time_to_save(compose: dict[str, Any]) -> None:
    """More than torchrun gives them under the launchers."""
    grace = re.fullmatch(r"(\d+)m", compose["services"]["train"]["stop_grace_period"])
    given = re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-(\d+)\}", (runs.ROOT / "launch/torchrun.sh").read_text())
    assert grace is not None
    assert given is not None
    assert 60 * int(grace[1]) > int(given[1])


@pytest.mark.skipif(compose_tool() is None, reason="needs Docker Compose 2")
def test_compose_reads_it(tmp_path: Path) -> None:
    tool = [*(compose_tool() or []), "--file", COMPOSE, "--profile", "two-nodes", "config"]
    result = call(*tool, DATA=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["services"]["train"]["stop_grace_period"] == "11m0s"
    refused = call("env", "--unset=DATA", *tool)
    assert refused.returncode != 0
    assert refused.stderr.endswith("name the folder of the data sets, which for the digits may be an empty one\n")
    assert refused.stderr.count("\n") == 1


def docker_has_the_image() -> bool:
    return shutil.which("docker") is not None and call("docker", "image", "inspect", "dynsparse").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(compose_tool() is None, reason="needs Docker Compose 2")
@pytest.mark.skipif(
    not docker_has_the_image(), reason="needs a Docker engine with the image: docker build -t dynsparse ."
)
def test_the_services() -> None:
    result = subprocess.run([sys.executable, "-m", "tests.launch.prove_compose"], cwd=runs.ROOT, check=False)
    assert result.returncode == 0
