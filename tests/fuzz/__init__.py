"""A fuzzer: it damages what the project's programs read, and runs them.

    python -m tests.fuzz --seconds 60 --seed 0         as many cases as fit, then counts and failures
    python -m tests.fuzz --cases 200 --seed 0          a fixed number of them
    python -m tests.fuzz --only 123                    one case again, with all that it printed
    python -m tests.fuzz --mutation lock --command auto    only those whose names begin so
    python -m tests.fuzz --kind inputs                 configs, images, shards, archives and lists (else: runs)

A case is one number. It says what is copied (`subjects`), what is done to the
copy (`mutations`) and which commands run on it (`commands`). A command may end
in two ways only: exit code 0, or exit code 2 with lines on standard error that
begin with `error: ` or `warning: `. The judge (`outcomes`) also refuses a
traceback, another exit code, a signal, a process that is left behind, and a
command that takes longer than its deadline or much more memory than it should.

**Runs** (this package): checkpoints and all other files of a run. The judge
also refuses

- a change to a file outside the run's folder, such as the target of a link, or
  to any file by a command that only reads;
- a whole checkpoint that is gone after exit code 2;
- `--resume auto` that refuses to go on though only checkpoints are damaged, and
  one is whole;
- a run that goes on after unsigned damage and ends with other weights or masks
  than the undisturbed run.

**Inputs** (`inputs`): configs, folders of images, shards and their indexes,
parquet files, archives to prepare, lists. Programs run in a row, and what they
say must agree. `inputs/judge.py` also refuses

- a change to the data, or to any file outside runs/ and out/;
- control characters in what is printed, as names may hold them;
- a bad image that is not named, or a whole one that is;
- `--check` that passes what a start refuses at once, or refuses what it takes;
- images on which the loaders differ: which are bad, why, and all pixels;
- a scan whose list leaves an image that training stops at;
- shards that were written in part, or that cannot be trained on;
- a data set prepared in part without a mark that says so, also by a command that
  was killed or had no room; files that are not as archived, or of other names.

torch is imported once, then each program is a fork (`children`): one to five
cases a second on one core. Linux alone: it reads /proc.

A mutation is a function of (random.Random, Scene) in `mutations/`, or of
(random.Random, Place) in `inputs/mutations/`, which returns what it did in a
few words. To add one, write it beside its kind with the decorator
`@mutation(...)`; nothing else has to know of it.
"""
