"""Accuracy of every method at several sparsities over several seeds: a table and two plots.

    python -m benchmarks.reproduce --out DIR          (make reproduce-digits: every method on the digits)
    python -m benchmarks.reproduce --out DIR --data mnist data.path=DIR    (hours; stop it and start it as you like)
    python -m benchmarks.reproduce --page             (the page and the plots anew, from the JSON)

Each run is a job of its own in a folder under --work, one process with one thread, so that it gives the same bits
however many run side by side. A job that is done is skipped, one that was stopped or killed resumes where it was. Each
run that ends is added to the JSON at once. Without --out that is the JSON of the kept figures, and what it has already
counts as done. `--part 2/3` runs a third of the jobs, on one of three machines, and
`--add FILE` takes over what another machine has made.

--epochs and overrides make other runs than the recipe's: they need an --out, so that no kept figure is replaced.

Accuracy is that of the last epoch on the test samples, never the best one, which would be chosen on the test set.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.harness import record
from benchmarks.harness.page import filled, named, versions
from benchmarks.harness.record import PAGES, Result
from benchmarks.harness.script import ScriptParser, link
from benchmarks.parts.reproduce import plots, table, telling
from benchmarks.parts.reproduce.comparing import compared, told_apart
from benchmarks.parts.reproduce.jobs import OWN, Job, Table, jobs
from benchmarks.parts.reproduce.making import Making
from benchmarks.parts.reproduce.published import LEAST_SPREAD, MOST_SPREAD, PUBLISHED, PUBLISHED_SEEDS, SOURCES
from benchmarks.parts.reproduce.recipe import Recipe
from benchmarks.parts.reproduce.recipes import RECIPES
from benchmarks.parts.reproduce.rows import costs, sparsities_of
from benchmarks.parts.reproduce.rows import rows as rows_of_parts
from dynsparse.errors import UserError
from pipelines.common.command_line import at_least_1


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a table; `arguments` in place of the command line's."""
    asked = parse(arguments)
    try:
        failed = [] if asked.page else make(asked)
        files = write(asked.data, asked.out, kept_in(asked))
    except UserError as error:
        sys.exit("".join(f"error: {line}\n" for line in error.lines).rstrip())
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}; give another, or make room for it")
    for file in files:
        print(f"written: {file}")
    if failed:
        sys.exit(f"failed: {', '.join(job.name for job in failed)}")


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--data", choices=sorted(RECIPES), default="digits")
    parser.add_argument("--methods", nargs="+", help="some of the recipe's, or of its parts")
    parser.add_argument("--sparsity", type=_fraction, nargs="+", help="instead of the recipe's")
    parser.add_argument("--seeds", type=at_least_1, help="for every method, instead of the recipe's")
    at_once = os.cpu_count() or 1
    parser.add_argument("--workers-at-once", type=at_least_1, default=at_once, metavar="N", help="(%(default)s)")
    parser.add_argument("--work", type=Path, help="folder of the runs (runs/reproduce_DATA)")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="run the Kth job and each Nth after it")
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FILE", help="add the runs of other JSONs")
    parser.add_argument("--epochs", type=at_least_1, help="instead of the recipe's own, for a quick look")
    parser.add_argument("--out", type=Path, default=PAGES, help="folder for the table and the plots")
    parser.add_argument("--page", action="store_true", help="train nothing; write the table and the plots anew")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change every run's config")
    asked = parser.parse_intermixed_args(arguments)
    recipe = RECIPES[asked.data]
    asked.methods = asked.methods or list(recipe.seeds)
    asked.sparsity = list(dict.fromkeys(asked.sparsity or recipe.sparsities))
    asked.work = asked.work or Path("runs") / f"reproduce_{asked.data}"
    if unknown := [method for method in asked.methods if method not in recipe.seeds]:
        parser.error(f"{asked.data} has no {', '.join(unknown)}; it has {', '.join(recipe.seeds)}")
    if 0.0 in asked.sparsity and 0.0 not in recipe.sparsities:
        parser.error(f"--sparsity has a 0, which is the dense network: {asked.data} has it once, by --methods dense")
    if own := [word for word in asked.overrides if word.partition("=")[0] in OWN]:
        parser.error(f"{own[0]}: the table gives each run its own; choose by --seeds and --work")
    if "thin" in asked.methods and (unfit := set(asked.sparsity) - set(recipe.thin)):
        parser.error(f"no widths of the thin network for {sorted(unfit)}; skip it in --methods, or add them here")
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", asked.part, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        parser.error(f"--part is '{asked.part}'; it must be K/N, such as 1/3")
    return asked


def _fraction(text: str) -> float:
    """Return a sparsity, as a type for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"is '{text}'; it must be a number from 0 to below 1, such as 0.9")
    return value


def kept_in(asked: Namespace) -> Path | None:
    """Return the folder of the JSON, None for that of the kept figures."""
    return None if asked.out.resolve() == PAGES.resolve() else Path(asked.out)


def make(asked: Namespace) -> list[Job]:
    """Run what is not done yet, and keep each run in the JSON. Returns the jobs that failed."""
    of = Table(asked.data, asked.work.absolute(), tuple(asked.overrides), asked.epochs)
    path = record.path_of(f"reproduce_{asked.data}", kept_in(asked))
    if of.changes and path.resolve() == record.path_of(f"reproduce_{asked.data}").resolve():
        raise UserError(f"{' '.join(of.changes)}: makes other runs than those that are kept; give a folder with --out")
    if asked.add:
        table.added(of, path, [(table.read(other), other) for other in asked.add])
    every = jobs(asked.methods, asked.sparsity, asked.seeds, RECIPES[asked.data].seeds)
    failed = Making(of, path).make(_part(every, asked.part), asked.workers_at_once)
    table.added(of, path)
    return failed


def _part(every: Sequence[Job], part: str) -> list[Job]:
    first, _, step = part.partition("/")
    return list(every[int(first) - 1 :: int(step)])


# The page


def write(data: str, folder: Path, kept_in: Path | None) -> list[Path]:
    """Write the page and the plots, from the JSON alone. Returns the files."""
    path = record.path_of(f"reproduce_{data}", kept_in)
    content = {**table.read(path), "link": link(path, folder)}
    content["runs"] = table.shown(content, path)
    content["results"] = table.described(content["runs"])
    if not content["runs"]:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    if (recipe := RECIPES[data]).parts:
        return _parts_page(content, recipe, folder / f"{data}.md", kept_in)
    page, accuracy, layers = (folder / f"{data}{end}" for end in (".md", "_accuracy.svg", "_layers.svg"))
    content["beside"] = beside(content, kept_in)
    moves = any("densities" in run for run in content["runs"] if run["method"] == "dsr")
    page.write_text(
        filled("reproduce", content, facts(content), moves=moves, table=rows_of(content), titles=recipe.titles) + "\n"
    )
    plots.accuracy(content, accuracy)
    if moves:
        plots.layers(content, layers)
    return [page, accuracy, *([layers] if moves else [])]


def _parts_page(content: Result, recipe: Recipe, page: Path, kept_in: Path | None) -> list[Path]:
    """Write the page of a table whose rows are parts or settings of methods. Returns the files."""
    rows = rows_of_parts(content["runs"], recipe.titles)
    tables = costs(content["runs"], recipe.titles) if recipe.costs else []
    more = {"table": rows, "tables": tables, "sparsities": sparsities_of(content["runs"])}
    more["seconds"] = _seconds(recipe, kept_in)
    page.write_text(filled(recipe.page, content, facts(content), **more) + "\n")
    if not tables:
        return [page]
    plots.costs(tables, plot := page.with_name(f"{content['data']}_costs.svg"))
    return [page, plot]


def _seconds(recipe: Recipe, kept_in: Path | None) -> dict[str, float]:
    """Return the time that all steps of a run take by each of the parts, of the dense ones; {} where not measured."""
    measured = bool(recipe.seconds) and record.path_of(recipe.seconds, kept_in).exists()
    return record.kept(recipe.seconds, kept_in)["whole_run_to_dense"] if measured else {}


def facts(content: Result) -> Result:
    """Return how the runs were made, for the page."""
    runs, recipe = content["runs"], RECIPES[content["data"]]
    counts = sorted({row["seeds"] for row in content["results"]})
    wanted = jobs(list(recipe.seeds), recipe.sparsities, None, recipe.seeds)
    missing = set(wanted) - {table.job_of(run) for run in runs}
    published = PUBLISHED.get(content["data"], {})
    starts = [start for run in runs for start in (*run.get("earlier", ()), run)]
    return {
        "title": recipe.title,
        "about": recipe.about,
        "told": recipe.told,
        "settings_told": recipe.settings_told,
        "told_apart": told_apart,
        "beside_told": recipe.beside_told,
        "changes": table.of_content(content).changes,
        "wanted": len(wanted),
        "there": len(wanted) - len(missing),
        "judged": not any(job.sparsity in published.get(job.method, {}) for job in missing),
        "seeds": " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        + (" seed" if counts == [1] else " seeds"),
        "hours": sum(run["seconds"] for run in runs) / 3600,
        "median_seconds": statistics.median(run["seconds"] for run in runs),
        "commits": ", ".join(map(named, sorted({str(start["commit"]) for start in starts}))),
        "processors": ", ".join(sorted({str(start["processor"]) for start in starts})),
        "versions": "; ".join(sorted({versions(start["versions"]) for start in starts})),
        "epochs_kept": all("accuracy" in run for run in runs),
        "compared": compared(content),
        "source": SOURCES.get(content["data"], ""),
        "unreached": {} if recipe.kind == "conv" else table.unreached(runs),
        "empty": telling.empty(runs, recipe.titles),
        "order": telling.ordered(runs),
        "ends": telling.ends(runs),
        "times": telling.times(runs, recipe.titles),
        "least": LEAST_SPREAD,
        "most": MOST_SPREAD,
        "published_seeds": PUBLISHED_SEEDS,
    }


def beside(content: Result, kept_in: Path | None) -> list[Result]:
    """Return runs that were made again in another way, each with those of the table and the published figure."""
    published = PUBLISHED.get(content["data"], {})
    ours = {(row["method"], row["sparsity"]): row for row in table.described(content["runs"])}
    found = []
    for name, how in RECIPES[content["data"]].beside.items():
        if record.path_of(f"reproduce_{name}", kept_in).exists():
            for row in table.described(table.shown(record.kept(f"reproduce_{name}", kept_in))):
                theirs = published.get(row["method"], {}).get(row["sparsity"])
                as_ours = ours.get((row["method"], row["sparsity"]))
                found.append({**row, "how": how, "ours": as_ours, "published": theirs})
    return found


def rows_of(content: Result, methods: Collection[str] | None = None) -> str:
    """Write a row a method and a column a sparsity. The dense network is the same in all columns."""
    published = PUBLISHED.get(content["data"], {})
    by = {
        (row["method"], row["sparsity"]): {
            **row,
            "published": published.get(row["method"], {}).get(row["sparsity"]),
        }
        for row in table.described(table.shown(content))
    }
    sparsities = sorted({sparsity for _, sparsity in by if sparsity > 0})
    rows = {}
    for method, title in RECIPES[content["data"]].titles.items():
        cells = [by.get((method, 0.0 if method == "dense" else sparsity)) for sparsity in sparsities]
        if any(cells) and (methods is None or method in methods):
            rows[title] = cells
    return filled("reproduce-table", sparsities=sparsities, rows=rows)


if __name__ == "__main__":
    main()
