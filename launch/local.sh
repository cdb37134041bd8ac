#!/usr/bin/env bash
# Train on this machine, one process a worker.
set -euo pipefail
# shellcheck source=launch/torchrun.sh
. "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"

usage() {
    cat <<'TEXT'
usage: launch/local.sh [--workers N|auto|demo] [--restarts N] [--logs DIR] [--] DIST_TRAIN_ARGUMENTS...

  --workers N     number of worker processes
  --workers auto  one a GPU, or one where there is none (the default)
  --workers demo  two, or one where there is a single GPU
  --restarts N    after a fault, such as a worker that was killed or one that no longer answers, start all
                  workers anew up to N times (default 3); they resume from the newest checkpoint. Bad input and a
                  stop on request are no faults
  --logs DIR      what each worker writes also goes to files of its own: DIR/HOST/LAUNCH/attempt_K/LOCAL_RANK/,
                  what torchrun logs to DIR/HOST/torchrun.log
  --check         say what a start would refuse, and end

The rest goes to dist_train.py: --config FILE [section.key=value ...].
Exits with dist_train.py's own code: 0 done, 2 bad input, 75 stopped and resumable.
PYTHON is the interpreter to use; by default that of .venv if make has set it up, else python3.
TEXT
}

while [ $# -gt 0 ]; do
    case $1 in
        --workers | --restarts) option number "$@" && shift 2 ;;
        --logs) option folder "$@" && shift 2 ;;
        --workers=* | --restarts=* | --logs=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --check) check=1 && shift ;;
        -h | --help) usage && exit ;;
        --) shift && break ;;
        *) own_words "$@" && break ;;
    esac
done
check_options "auto demo"
[ "$(uname)" = Linux ] || fail "it is for Linux; elsewhere torchrun --nproc-per-node N dist_train.py ... data.loader=torch"
[ $# -gt 0 ] || fail "nothing to run; see launch/local.sh --help"
find_python
count_workers
check_input 1 "" "$@"
# Nothing listens beyond this machine, and nobody need know its name: workers meet in a file and connect over loopback.
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-=lo}
train --rdzv-backend alone --rdzv-endpoint "$scratch/meeting" --rdzv-id "$(cat /proc/sys/kernel/random/uuid)" \
    --local-addr localhost -- "$@"
