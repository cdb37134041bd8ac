#!/usr/bin/env bash
# Train on this machine, one process a worker.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/local.sh [--workers N|auto|demo] [--restarts N] [--] DIST_TRAIN_ARGUMENTS...

  --workers N     number of worker processes
  --workers auto  one a GPU, or one where there is none (the default)
  --workers demo  two, or one where there is a single GPU
  --restarts N    after a fault, such as a worker that was killed or one that no longer answers, start all
                  workers anew up to N times (default 3); they go on from the newest checkpoint. Bad input and a
                  stop on request are no faults

The rest goes to dist_train.py: --config FILE [section.key=value ...].
Exits with dist_train.py's own code: 0 done, 2 bad input, 75 stopped and resumable.
PYTHON is the interpreter to use; by default that of .venv if make has set it up, else python3.
TEXT
}

fail() {
    echo "error: $1" >&2
    exit 2
}

# A signal before there is anything to pass it on to: without a trap bash forgets one that comes while a command runs.
trap 'exit 75' TERM INT USR1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=python3
if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
python=${PYTHON:-$python}
workers=auto
restarts=3
while [ $# -gt 0 ]; do
    case $1 in
        --workers)
            [ $# -ge 2 ] || fail "--workers lacks its number"
            workers=$2
            shift 2
            ;;
        --restarts)
            [ $# -ge 2 ] || fail "--restarts lacks its number"
            restarts=$2
            shift 2
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) break ;;
    esac
done
case $restarts in *[!0-9]* | '') fail "--restarts is '$restarts'; it must be a number, 0 for none" ;; esac
[ $# -gt 0 ] || fail "nothing to run; see launch/local.sh --help"
"$python" -c 'import torch' 2>/dev/null || fail "$python has no torch; run make setup, or set PYTHON"
case $workers in
    auto | demo)
        gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
        most=$gpus
        if [ "$workers" = demo ]; then most=2; fi
        if [ "$gpus" -gt 0 ] && [ "$gpus" -lt "$most" ]; then most=$gpus; fi
        workers=$((most > 0 ? most : 1))
        ;;
    *[!0-9]* | '' | 0) fail "--workers is '$workers'; it must be a number of at least 1, auto or demo" ;;
esac

# torchrun gives each worker one thread if this is not set, and warns about it.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# torchrun returns 1 for whatever a worker did, so the workers leave their code in a file.
DYNSPARSE_EXIT_FILE=$(mktemp)
export DYNSPARSE_EXIT_FILE
# Asked to stop, torchrun waits so many seconds for the workers to save before it kills them: 30 by default, which is
# too short for large states and slow disks. Not its option --shutdown-timeout, which not every torch that we run with
# has. What follows a fault is not affected.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
trap 'rm -f "$DYNSPARSE_EXIT_FILE"' EXIT

# In the background, so that this shell can pass signals on: a foreground child would be orphaned by SIGTERM.
# With job control, for without it a background child ignores SIGINT; its group is its own then, and a terminal's
# Ctrl-C reaches it once, through the trap.
set -m
"$python" -m torch.distributed.run --standalone --nproc-per-node "$workers" --max-restarts "$restarts" \
    --signals-to-handle SIGTERM,SIGINT,SIGUSR1 "$root/dist_train.py" "$@" &
torchrun=$!
set +m
asked_to_stop=
for signal in TERM INT USR1; do
    # shellcheck disable=SC2064 # the process is known now
    trap "asked_to_stop=1; kill -$signal $torchrun 2>/dev/null || true" "$signal"
done
status=0
while :; do
    status=0
    wait "$torchrun" || status=$?
    # A trapped signal ends `wait` before torchrun has ended.
    kill -0 "$torchrun" 2>/dev/null || break
done
if [ -s "$DYNSPARSE_EXIT_FILE" ]; then status=$(cat "$DYNSPARSE_EXIT_FILE"); fi
# Workers that had no time to say so, such as those that were about to start again after a fault, were stopped too.
if [ -n "$asked_to_stop" ]; then
    case $status in
        0 | 2 | 75) ;;
        *)
            echo "warning: the workers were ended before they had saved; the run goes on from the checkpoint before" >&2
            status=75
            ;;
    esac
fi
exit "$status"
