"""A fuzzer of run folders: it damages checkpoints and all other files of a run, and runs the commands on them.

    python -m tests.fuzz --seconds 60 --seed 0         as many cases as fit, then counts and failures
    python -m tests.fuzz --cases 200 --seed 0          a fixed number of them
    python -m tests.fuzz --only 123                    one case again, with all that it printed
    python -m tests.fuzz --mutation lock --command auto    only those whose names begin so

A case is one number. It says which small run is copied (`subjects`), what is
done to the copy (`mutations`) and which command runs on it (`commands`). A
command may end in two ways only: exit code 0, or exit code 2 with lines on
standard error that begin with `error: ` or `warning: `. The judge
(`outcomes`) also refuses

- a traceback, another exit code, a signal, a process that is left behind;
- a command that takes longer than its deadline, or much more memory than the
  run's files take on the disk;
- a change to a file outside the run's folder, such as the target of a link, or
  to any file by a command that only reads;
- a whole checkpoint that is gone after exit code 2;
- `--resume auto` that refuses to go on though only checkpoints are damaged, and
  one is whole;
- a run that goes on after unsigned damage and ends with other weights or masks
  than the undisturbed run.

torch is imported once, then each case is a fork (`children`): three to five
cases a second on one core. Linux alone: it reads /proc.

A mutation is a function of (random.Random, Scene) in `mutations/`, which
returns what it did in a few words. To add one, write it beside its kind with
the decorator `@mutation(...)`; nothing else has to know of it.
"""
