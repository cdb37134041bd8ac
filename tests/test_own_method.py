"""A method of one's own from a file outside the project, as docs/adding-a-method.md shows it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dynsparse.cli import train
from dynsparse.config import loading, schema
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.building import build
from dynsparse.training.resume.taking import differences
from tests.ranks import run_distributed
from tests.training import runs

PAGE = (runs.ROOT / "docs/adding-a-method.md").read_text()
FAULTY_RUN = runs.ROOT / "tests/training/faulty_run.py"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


RULE, LOOP = blocks("python")[:2]
(RUN,) = blocks("yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the page's file alone. Processes and paths begin in another one."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_rule.py").write_text(RULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def written(folder: Path, name: str, method: dict[str, Any], **sections: Any) -> Path:
    """Write a config of a small run, with this `method`, in the folder."""
    base = {**runs.BASE, "name": name, "runs": str(folder / "runs"), "method": method, **sections}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(base))
    return path


def test_the_guide_works_from_an_empty_folder(tmp_path: Path) -> None:
    """Its files are all that the folder holds, and its command trains."""
    for name, content in (("my_rule.py", RULE), ("my_loop.py", LOOP), ("run.yaml", RUN)):
        (tmp_path / name).write_text(content)

    def python(*words: str) -> str:
        done = runs.python(*words, at=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert re.search(r"^SparseTraining\(MyRule, .* step 100 of 100\)$", python("my_loop.py"), re.MULTILINE)
    assert "dynsparse train --config run.yaml" in PAGE
    assert "mnist_mlp by my_rule: " in python("-m", "dynsparse", "train", "--config", "run.yaml")
    summary = runs.summary(tmp_path / "runs/mnist_mlp_0")
    assert summary["reallocations"] == 8 and summary["ever_active"] > 1 - summary["sparsity"]


def test_a_run_is_resumed_and_read_without_the_file(folder: Path) -> None:
    """Two workers; one is killed. The run's own copy does the rest, and the bits are those of a run in one go."""
    method = {"path": "my_rule.py", "period": 3}
    sections = {"train": {"epochs": 2, "global_batch_size": 12}, "checkpoint": {"every_steps": 3}}
    whole, killed = (written(folder, name, method, **sections) for name in ("whole", "killed"))
    assert runs.dist_train("--config", whole, workers=2).returncode == 0
    died = runs.dist_train("--config", killed, workers=2, script=FAULTY_RUN, FAULTS="kill 1 step 8")
    assert died.returncode != 0
    (folder / "my_rule.py").unlink()
    run = folder / "runs/killed"
    assert (run / "method.py").read_text() == RULE
    resumed = runs.dist_train("--resume", run, workers=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "method.checksum" not in resumed.stderr
    expected, found = runs.summary(folder / "runs/whole"), runs.summary(run)
    for key in ("weight_digest", "mask_digest", "rank_digests", "reallocations", "ever_active"):
        assert found[key] == expected[key]
    assert found["reallocations"] == 5

    (run / "method.py").write_text("raise SystemExit('the file was run')")  # What reads a network does not run it.
    latest = run / "checkpoints/latest.pt"
    for words in (
        ["inspect", latest],
        ["report", run],
        ["export", latest, "--format", "torch", "--out", folder / "out.pt"],
    ):
        read = runs.python("-m", "dynsparse", *words)
        assert read.returncode == 0, read.stderr
    evaluated = runs.dist_train("--evaluate", run)
    assert evaluated.returncode == 0, evaluated.stderr
    refused = runs.dist_train("--resume", run, "train.epochs=3")
    assert refused.returncode == 2
    assert re.fullmatch(
        rf"error: {run}: method.path: {run}/method.py has the checksum [0-9a-f]{{16}}, and method.checksum is "
        r"[0-9a-f]{16}: the file has changed since; bring it back, or set method.checksum=null to use it as it is\n",
        refused.stderr,
    )


def test_a_resume_says_that_the_file_has_changed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(folder, "a", {"path": "my_rule.py", "period": 3})
    assert train.main(["--config", str(path)]) == 0
    before = loading.load(path).as_dict()
    (folder / "my_rule.py").write_text(f"{RULE}\n# Changed.\n")
    assert loading.load(path).method.fraction == 0.2  # type: ignore[union-attr]
    (line,) = differences(before, loading.load(path).as_dict())
    assert re.fullmatch(r"method.checksum=[0-9a-f]{16} \(was [0-9a-f]{16}\)", line)
    assert train.main(["--config", str(path), "--resume", "auto", "train.epochs=3"]) == 0
    assert f"resuming with {line}" in caplog.messages
    assert (folder / "runs/a/method.py").read_text().endswith("# Changed.\n")
    assert train.main(["--config", str(path), "--overwrite", "method={name: static}"]) == 0
    assert not (folder / "runs/a/method.py").exists()


def test_the_config_of_a_run_begins_it_anew(folder: Path) -> None:
    """It names the copy beside it, which wins over another file of that name in the current folder."""
    path = written(folder, "a", {"path": "my_rule.py", "period": 3})
    assert train.main(["--config", str(path)]) == 0
    Path("method.py").write_text("raise RuntimeError")
    again = loading.load(folder / "runs/a/config.yaml", ["name=b"]).as_dict()
    assert again["method"] == {**loading.load(path).as_dict()["method"], "path": str(folder / "runs/a/method.py")}


def test_the_path_is_found_beside_the_config_and_from_the_current_folder(folder: Path) -> None:
    path = written(folder, "a", {"path": "my_rule.py"})
    beside = loading.load(path)
    assert beside.method.name == "my_rule" and beside == loading.load(path), "one class for one file"
    shutil.move(folder / "my_rule.py", "my_rule.py")
    assert loading.load(path).as_dict()["method"]["path"] == "my_rule.py"
    assert loading.load(path, ["method.path=./my_rule.py"]).method.name == "my_rule"


TWO = RULE + '\n\nclass OtherSettings(MyRuleSettings):\n    name: Literal["other"] = "other"\n'
REFUSED = {
    "missing": (
        None,
        {},
        "nowhere.py is not there; name a Python file, beside the config's file or from the current folder",
    ),
    "syntax": ("x = 1\ndef f(:\n", {}, "rule.py, line 2: invalid syntax; mend the file"),
    "import": ("x = 1\n\ny = z\n", {}, "rule.py, line 3: NameError: name 'z' is not defined; mend the file"),
    "exit": ("import sys\nsys.exit(3)\n", {}, "rule.py, line 2: SystemExit: 3; mend the file"),
    "validation": (
        RULE + "x = MyRuleSettings(fraction=7)\n",
        {},
        "rule.py, line 38: ValidationError: fraction: Input should be less than or equal to 1; mend the file",
    ),
    "base exception": ("raise GeneratorExit('x')\n", {}, "rule.py, line 1: GeneratorExit: x; mend the file"),
    "bytes": (
        b"x = '\xe9'\n",
        {},
        (
            "rule.py, line 1: (unicode error) 'utf-8' codec can't decode byte 0xe9 in position 0: unexpected end of "
            "data; mend the file"
        ),
    ),
    "number": (
        RULE.replace('"my_rule"', "3"),
        {},
        "rule.py: MyRuleSettings has no name; give it one, name: Literal['rule']",
    ),
    "nothing": (
        "from dynsparse.methods.set import SetSettings\n",
        {},
        "rule.py has no settings of a method; define a class that derives from MethodSettings, or from DynamicSettings",
    ),
    "nameless": (
        "from dynsparse.methods import MethodSettings\nclass Mine(MethodSettings):\n    pass\n",
        {},
        "rule.py: Mine has no name; give it one, name: Literal['rule']",
    ),
    "taken": (
        RULE.replace('"my_rule"', '"rigl"'),
        {},
        "rule.py: rigl is the name of a built-in method; give MyRuleSettings another name",
    ),
    "clash": (
        RULE.replace("fraction: Share", "checksum: Share"),
        {},
        "rule.py: MyRuleSettings has the option checksum, which every file's method has; call it otherwise",
    ),
    "several": (TWO, {}, "rule.py has the methods my_rule, other; say which one in method.name"),
    "other name": (RULE, {"name": "set"}, "rule.py has no method 'set'; it has my_rule"),
    "checksum": (
        RULE,
        {"checksum": "0" * 16},
        (
            "rule.py has the checksum CHECKSUM, and method.checksum is 0000000000000000: the file has changed since; "
            "bring it back, or set method.checksum=null to use it as it is"
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_of_no_use_is_refused_in_one_line(folder: Path, case: str) -> None:
    """The config's other mistakes are told beside it."""
    content, more, message = REFUSED[case]
    if content is not None:
        (folder / "rule.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    path = written(folder, "a", {"path": "nowhere.py" if content is None else "rule.py", **more})
    with pytest.raises(UserError) as refused:
        loading.load(path, ["seed=-1"])
    where = "" if content is None else f"{folder}/"
    first, second = refused.value.lines
    assert re.sub(r"checksum [1-9a-f][0-9a-f]{15}|checksum [0-9a-f]{15}[1-9a-f]", "checksum CHECKSUM", first) == (
        f"{path}: method.path: {where}{message}"
    )
    assert second == "command line: seed: is -1; input should be greater than or equal to 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fracton": 0.3}, "method.fracton: unknown key; did you mean 'fraction'?"),
        ({"fraction": 2}, "method.fraction: is 2; input should be less than or equal to 1"),
        ({"name": 3}, "method.path: FOLDER/my_rule.py has no method '3'; it has my_rule"),
        ({"path": 3}, "method.path: is 3; name a Python file"),
        (
            {"path": "$NOWHERE/x.py"},
            (
                "method.path: is '$NOWHERE/x.py'; the variable NOWHERE is not set: set it, write the path, or $$ for a "
                "dollar sign"
            ),
        ),
        ({"path": "."}, "method.path: . cannot be read (is a folder); name a Python file"),
    ],
)
def test_options_are_as_strict_as_built_in_ones(folder: Path, options: dict[str, Any], message: str) -> None:
    path = written(folder, "a", {"path": "my_rule.py", **options})
    with pytest.raises(UserError) as refused:
        loading.load(path)
    assert refused.value.lines == (f"{path}: {message.replace('FOLDER', str(folder))}",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return MyRule(self)", "return MyRule(self, 1)", "line 24: TypeError: Dynamic.__init__() takes 2 positional "),
        (
            "    def drop_cuts",
            "    def check(self, layers, active_units):\n        return active_units['x']\n\n    def drop_cuts",
            "line 33: KeyError: 'x'; mend the file",
        ),
        (
            "    def build(",
            "    @property\n    def starts(self):\n        return 1 / 0\n\n    def build(",
            "line 25: ZeroDivisionError: division by zero; mend the file",
        ),
        (
            "    def build(",
            "    @property\n    def starts(self):\n        return 'tied'\n\n    def build(",
            "method my_rule starts tied, and a method from a file cannot: start sparse or dense",
        ),
        (
            "    def drop_cuts",
            "    def prepare(self, masks):\n        masks.nothing()\n\n    def drop_cuts",
            "line 33: AttributeError: 'MaskSet' object has no attribute 'nothing'; mend the file",
        ),
    ],
)
def test_an_exception_in_the_file_is_told_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    (folder / "my_rule.py").write_text(RULE.replace(old, new))
    assert train.main(["--config", str(written(folder, "a", {"path": "my_rule.py"}))]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: "), error
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("flag", ["--check", "--dry-run"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    def drop_cuts",
            "    def moved_share(self, clock):\n        return 1 / 0\n\n    def drop_cuts",
            ", line 33: ZeroDivisionError: division by zero; mend the file",
        ),
        (
            "    def drop_cuts",
            "    def is_due(self, clock):\n        return 1 / 0\n\n    def drop_cuts",
            ", line 33: ZeroDivisionError: division by zero; mend the file",
        ),
        (
            "    def build(",
            "    period: int = 3\n\n    def build(",
            ": AttributeError: 'int' object has no attribute 'points'; mend the file",
        ),
    ],
)
def test_an_exception_in_a_forecast_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str, old: str, new: str, message: str
) -> None:
    (folder / "my_rule.py").write_text(RULE.replace(old, new))
    method = {"path": "my_rule.py"} if "period" in new else {"path": "my_rule.py", "period": 3}
    assert train.main(["--config", str(written(folder, "a", method)), flag]) == 2
    assert capsys.readouterr().err == f"error: {folder}/my_rule.py{message}\n"


def test_editors_take_any_option_of_a_file_and_none_of_a_built_in_method() -> None:
    described = json.loads(schema.json_schema())
    base = {key: runs.BASE[key] for key in ("model", "data")}
    jsonschema.validate({**base, "method": {"path": "my_rule.py", "anything": [1]}}, described)
    for method in ({"path": 3}, {"name": "set", "anything": 1}, {"anything": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**base, "method": method}, described)


def build_with(worker: Worker, folder: Path) -> str:
    """Build a run whose file is another one on each rank."""
    try:
        build(loading.load(folder / f"{worker.rank}.yaml"), worker)
    except UserError as error:
        return str(error)
    return "built"


def test_all_ranks_need_the_same_file(folder: Path) -> None:
    shutil.copy(folder / "my_rule.py", folder / "same.py")
    (folder / "other.py").write_text(f"{RULE}\n# Another.\n")
    for rank, name in enumerate(("my_rule.py", "same.py", "other.py")):
        written(folder, str(rank), {"path": name})
    message = "method.path: worker 2 has another method file than worker 0; give all machines the same file"
    assert run_distributed(build_with, 3, folder) == [message] * 3
    assert run_distributed(build_with, 2, folder) == ["built"] * 2
