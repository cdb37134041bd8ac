"""Files that are gone, belong to another run, or are not of a run; the checkpoints folder as something else."""

from __future__ import annotations

import os
import shutil
from random import Random

from tests.fuzz.mutations.nodes import MAKERS, link_to_a_folder, link_to_its_folder, put
from tests.fuzz.mutations.registry import mutation
from tests.fuzz.mutations.which import RUN_FILES, remove, replace, steps
from tests.fuzz.scene import Scene, of_file, regular_files


@mutation("folder")
def nothing(rng: Random, scene: Scene) -> str:
    """Each command does what it should on a run that nothing was done to."""
    return "nothing"


@mutation("folder")
def no_steps(rng: Random, scene: Scene) -> str:
    for path in steps(scene):
        path.unlink()
    return "no step files"


@mutation("folder")
def no_checkpoints(rng: Random, scene: Scene) -> str:
    for path in scene.checkpoints.iterdir():
        path.unlink()
    return "no checkpoints"


@mutation("folder")
def one_checkpoint_left(rng: Random, scene: Scene) -> str:
    left = rng.choice(sorted(scene.checkpoints.iterdir()))
    for path in scene.checkpoints.iterdir():
        if path != left:
            path.unlink()
    return f"only {left.name} left"


@mutation("folder")
def some_files_gone(rng: Random, scene: Scene) -> str:
    files = [path for path in sorted(scene.run.rglob("*")) if path.is_file()]
    gone = rng.sample(files, min(len(files), rng.choice((1, 1, 2, 5))))
    for path in gone:
        path.unlink()
    return f"without {', '.join(str(path.relative_to(scene.run)) for path in gone)}"


@mutation("folder")
def only_checkpoints_left(rng: Random, scene: Scene) -> str:
    for path in scene.run.iterdir():
        if path != scene.checkpoints:
            path.unlink()
    return "only the checkpoints left"


@mutation("folder")
def no_checkpoints_folder(rng: Random, scene: Scene) -> str:
    shutil.rmtree(scene.checkpoints)
    return "no checkpoints folder"


@mutation("folder")
def empty_folder(rng: Random, scene: Scene) -> str:
    shutil.rmtree(scene.run)
    scene.run.mkdir()
    return "an empty folder"


@mutation("folder")
def no_folder(rng: Random, scene: Scene) -> str:
    shutil.rmtree(scene.run)
    return "no folder"


@mutation("folder")
def checkpoints_folder_is_something_else(rng: Random, scene: Scene) -> str:
    make = rng.choice(MAKERS)
    put(rng, make, scene.checkpoints, scene)
    if make is link_to_a_folder:  # Then it is the checkpoints folder, and what lies there is damaged.
        scene.moved = scene.outside / "folder"
    return f"{make.__name__} for the checkpoints folder"


@mutation("folder")
def run_folder_is_something_else(rng: Random, scene: Scene) -> str:
    make = rng.choice(MAKERS)
    put(rng, make, scene.run, scene)
    if make is link_to_a_folder:
        scene.moved = scene.outside / "folder"
        scene.strangers += [of_file(path) for path in regular_files(scene.moved)]
    elif make is link_to_its_folder:
        scene.moved = scene.run.parent
    return f"{make.__name__} for the run's folder"


@mutation("folder")
def checkpoints_are_on_another_disk(rng: Random, scene: Scene) -> str:
    """Replace the folder by a link to one with this run's checkpoints alone, as users with little disk space do."""
    scene.moved = scene.home / "disk"
    os.replace(scene.checkpoints, scene.moved)
    scene.checkpoints.symlink_to(scene.moved)
    return "the checkpoints folder is a link to one that holds its checkpoints"


@mutation("folder")
def unknown_files(rng: Random, scene: Scene) -> str:
    names = rng.sample(
        (
            "notes.txt",
            "checkpoints/notes.txt",
            "checkpoints/step-1.pt",
            "checkpoints/step-000000008.pt.bak",
            "checkpoints/STEP-000000099.PT",
            "checkpoints/step-00000000a.pt",
            "checkpoints/step-0000000001.pt",
            "a\nb",
            "wei\x1brd",
            "x" * 200,
            "sub/metrics.jsonl",
            "sub/checkpoints/latest.pt",
        ),
        3,
    )
    for name in names:
        path = scene.run / name
        if path.suffix == ".pt":  # What looks like a checkpoint may go with the run.
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("not of the run\n")
        else:
            scene.stranger(path)
    return f"strangers {names}"


@mutation("folder")
def name_that_is_no_text(rng: Random, scene: Scene) -> str:
    name = rng.choice((b"\xff\xfe", b"step-\xff.pt", b"checkpoints/\xff.pt", b"checkpoints/step-\xff\xff.partial"))
    with open(os.path.join(os.fsencode(scene.run), name), "wb") as file:
        file.write(b"x")
    return f"a file named {name!r}"


@mutation("folder")
def many_files(rng: Random, scene: Scene) -> str:
    where = rng.choice((scene.run, scene.checkpoints))
    name = rng.choice(("step-{:09d}.pt", "events.out.tfevents.{}", "lock-{:x}.partial", "x{}"))
    for number in range(100, 1600):
        (where / name.format(number)).touch()
    return f"1,500 empty files {name} in {where.name}"


@mutation("folder")
def of_another_run(rng: Random, scene: Scene) -> str:
    """One or some of the files are those of a run with another model."""
    names = rng.sample(
        (*RUN_FILES, "checkpoints/latest.pt", "checkpoints/best.pt", "checkpoints/initial.pt", "the newest step"), 2
    )
    for name in names:
        path = steps(scene)[0] if name == "the newest step" else scene.run / name
        source = scene.other_run / ("checkpoints/latest.pt" if name == "the newest step" else name)
        if source.exists():
            replace(path, source.read_bytes())
    scene.signed = True
    return f"another run's {', '.join(names)}"


@mutation("folder")
def all_of_another_run(rng: Random, scene: Scene) -> str:
    remove(scene.checkpoints)
    shutil.copytree(scene.other_run / "checkpoints", scene.checkpoints)
    scene.signed = True
    return "the checkpoints of another run"


@mutation("folder")
def steps_under_other_numbers(rng: Random, scene: Scene) -> str:
    """A step file that holds an earlier step, or a later one, than its name says."""
    files = steps(scene)
    source, number = rng.choice(files), rng.choice((0, 1, 9, 15, 17, 999_999_999))
    target = scene.checkpoints / f"step-{number:09d}.pt"
    replace(target, source.read_bytes())
    return f"{source.name} as {target.name}"


@mutation("folder")
def step_files_swapped(rng: Random, scene: Scene) -> str:
    files = steps(scene)
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, reversed(contents), strict=True):
        replace(path, content)
    return "the newest step holds the oldest, and so on"


@mutation("folder")
def latest_is_earlier(rng: Random, scene: Scene) -> str:
    source = rng.choice([*steps(scene), scene.checkpoints / "initial.pt"])
    name = rng.choice(("latest.pt", "best.pt"))
    replace(scene.checkpoints / name, source.read_bytes())
    return f"{name} holds {source.name}"


@mutation("folder")
def read_only(rng: Random, scene: Scene) -> str:
    """Means nothing to root."""
    path = rng.choice((scene.run, scene.checkpoints, scene.run / "metrics.jsonl", scene.checkpoints / "latest.pt"))
    path.chmod(rng.choice((0, 0o444, 0o555)))
    return f"{path.name} is read-only"
