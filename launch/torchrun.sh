# What the launchers share: arguments, the interpreter, a check of the input, torchrun, signals and exit codes.
# They source it: it is bash, under set -euo pipefail.
# shellcheck shell=bash

# A closed stream stays open for nothing to be written to: a file that is opened later would get its number.
{ true >&1; } 2>/dev/null || exec 1</dev/null
{ true >&2; } 2>/dev/null || exec 2</dev/null

# On stderr, which may be closed, full or a terminal that is gone: that ends nothing.
say() {
    echo "$*" >&2 || true
}

fail() {
    say "error: $1"
    exit 2
}

# Signals are passed on to what runs in the background, torchrun in the end; with nothing there they end the launcher.
# Trapped from the start, for bash forgets a signal that comes while a command runs if there is no trap.
asked_to_stop=
ended= # the latest background process that is known to have ended
trains=   # whether what is started next is torchrun
training= # whether it was started: workers that it has left behind may still save then
stop() {
    asked_to_stop=1
    if [ "${!:-}" != "$ended" ]; then
        kill -s "$1" "$!" 2>/dev/null || true
    elif [ -z "$training" ]; then
        exit 75
    fi
}
for signal in TERM INT USR1 HUP; do # bash leaves HUP ignored if it was so from the start, as under nohup
    # shellcheck disable=SC2064 # each signal its own
    trap "stop $signal" "$signal"
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The options that all launchers have, with their defaults.
workers=auto
restarts=3
logs=
check=

# Set the variable of an option: `option WHAT "$@"` of --restarts 5 sets restarts. WHAT is what it cannot be without.
option() {
    [ $# -ge 3 ] || fail "$2 lacks its $1"
    local name=${2#--}
    printf -v "${name//-/_}" %s "$3"
}

# `own_words "$@"`: refuse a word that was meant for the launcher and stands behind the first one of dist_train.py, which
# would take it for its own: threads that read the data. Behind -- it is that.
own_words() {
    local word
    for word; do
        case $word in
            --workers | --workers=*) fail "$word stands after arguments of dist_train.py; give --workers N before them" ;;
        esac
    done
}

# Whether $1 is a whole number of at least $2.
is_number() {
    [[ $1 =~ ^[0-9]{1,9}$ ]] && [ "$1" -ge "$2" ]
}

# Check the shared options; `$1` says which words --workers may be instead of a number: "auto", "auto demo".
check_options() {
    is_number "$restarts" 0 || fail "--restarts is '$restarts'; it must be a number, 0 for none"
    [[ " $1 " == *" $workers "* ]] || is_number "$workers" 1 ||
        fail "--workers is '$workers'; it must be ${1// /, } or a number of at least 1"
}

find_python() {
    python=python3
    if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
    python=${PYTHON:-$python}
    command -v "$python" >/dev/null || fail "there is no $python; run make setup, or set PYTHON"
}

# How many workers there shall be, if that depends on the GPUs. Only then is torch imported, which takes seconds.
count_workers() {
    local gpus most asks='import torch; print(torch.cuda.device_count())'
    [[ $workers =~ ^(auto|demo)$ ]] ||
        asks='import sys; from importlib.util import find_spec as find; sys.exit(find("torch") is None)'
    gpus=$("$python" -c "$asks" 2>/dev/null) || fail "$python has no torch; run make setup, or set PYTHON"
    case $workers in
        auto | demo)
            # Slurm's account of the node. Without this a broken driver makes a run on the CPU of what was to have GPUs.
            [ "${SLURM_GPUS_ON_NODE:-0}" -le "$gpus" ] || fail \
                "Slurm gave $SLURM_GPUS_ON_NODE GPUs, torch sees $gpus on $(uname -n); mend its driver, or set --workers"
            most=$gpus
            if [ "$workers" = demo ]; then most=2; fi
            if [ "$gpus" -gt 0 ] && [ "$gpus" -lt "$most" ]; then most=$gpus; fi
            workers=$((most > 0 ? most : 1))
            ;;
    esac
}

# Run a command in the background and wait for it, so that this shell can pass signals on: a foreground child would be
# orphaned by SIGTERM. With job control, for without it a background child ignores SIGINT; its group is its own then,
# and a terminal's Ctrl-C reaches it once, through the trap. Returns the command's code.
supervise() {
    local code
    set -m
    "$@" &
    training=$trains # Only now: a signal before has nothing to be passed on to, and ends the launcher.
    set +m
    while :; do
        code=0
        { wait "$!" || code=$?; } 2>/dev/null # If it was killed: train says so, not bash.
        # A trapped signal ends `wait` before the command has ended.
        kill -0 "$!" 2>/dev/null || break
    done
    ended=$!
    return "$code"
}

# The same for what comes before torchrun: if it fails, or a signal came, the launcher ends with it.
first() {
    local code=0
    supervise "$@" || code=$?
    [ -z "$asked_to_stop" ] || exit 75
    [ "$code" -eq 0 ] || exit "$code"
}

# `check_input MOST_NODES ID ARGUMENTS...`: bad input is said here in a line for each thing that is wrong. Found by the
# workers it would come with torchrun's traceback, after all nodes have met. As rank 0 sees it; nothing is changed.
check_input() {
    local nodes=$1 id=$2
    shift 2
    first env RANK=0 LOCAL_RANK=0 WORLD_SIZE=$((nodes * workers)) LOCAL_WORLD_SIZE="$workers" \
        ${id:+TORCHELASTIC_RUN_ID="$id"} "$python" "$root/dist_train.py" --check "$@" >/dev/null
    [ -z "$check" ] || exit 0
}

# `train TORCHRUN_OPTIONS... -- ARGUMENTS...`: run dist_train.py under torchrun, and exit with the workers' own code.
train() {
    local options=() status=0 log=$scratch/torchrun.log
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    # What each worker writes, also in a file of its own: LOGS/HOST/LAUNCH/attempt_K/LOCAL_RANK/stderr.log.
    if [ -n "$logs" ]; then
        options+=(--log-dir "$logs/$(uname -n)" --tee 3)
        log=$logs/$(uname -n)/torchrun.log
        mkdir -p "$logs/$(uname -n)" 2>/dev/null || fail "--logs $logs: no folder can be made there"
    fi
    # torchrun gives each worker one thread if this is not set, and warns about it.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # torchrun returns 1 for whatever a worker did, so the workers leave their code in a file.
    export DYNSPARSE_EXIT_FILE=$scratch/exit
    # Asked to stop, torchrun waits so many seconds for the workers to save before it kills them: 30 by default, which
    # is too short for large states and slow disks. Not its option --shutdown-timeout, which not every torch that we run
    # with has. What follows a fault is not affected.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
    trains=1
    supervise "$python" "$root/launch/agent.py" "$log" "${options[@]}" --nproc-per-node "$workers" \
        --max-restarts "$restarts" "$root/dist_train.py" "$@" || status=$?
    # Asked to stop, or killed: then the workers notice, and save.
    if [ -n "$asked_to_stop" ] || [ "$status" -gt 128 ]; then wait_for_workers; fi
    if [ -s "$DYNSPARSE_EXIT_FILE" ]; then
        status=$(cat "$DYNSPARSE_EXIT_FILE")
    elif [ "$status" -gt 128 ] && [ -z "$asked_to_stop" ]; then
        say "error: torchrun on $(uname -n) was killed by signal $((status - 128))"
    fi
    # Workers that had no time to say so, such as those that were about to start again after a fault, were stopped too.
    if [ -n "$asked_to_stop" ]; then
        case $status in
            0 | 2 | 75) ;;
            *)
                say "warning: the workers were ended before they had saved; the run resumes from the checkpoint" \
                    "before"
                status=75
                ;;
        esac
    fi
    case $status in
        0 | 2 | 75) ;;
        *) keep_log "$log" ;;
    esac
    exit "$status"
}

# Say where torchrun's log is after a fault. Without --logs it moves out of the folder that is removed at the end.
keep_log() {
    local log=$1
    [ -s "$log" ] || return 0
    if [ -z "$logs" ]; then
        log=$(mktemp "${TMPDIR:-/tmp}/dynsparse-torchrun-XXXXXX.log") && cp "$1" "$log" || return 0
    fi
    say "note: torchrun's own log is $log"
}

# torchrun leaves its workers behind when a third signal reaches it while it waits for them. Schedulers send several,
# and to all processes of a job at once. The workers save nevertheless; what started this launcher must not take its end
# for theirs.
wait_for_workers() {
    local seconds=$TORCH_ELASTIC_SHUTDOWN_TIMEOUT
    while [ "$seconds" -gt 0 ] &&
        env -u DYNSPARSE_EXIT_FILE grep -qszF "DYNSPARSE_EXIT_FILE=$DYNSPARSE_EXIT_FILE" /proc/[0-9]*/environ; do
        sleep 1 || true
        seconds=$((seconds - 1))
    done
}
