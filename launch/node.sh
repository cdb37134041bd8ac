#!/usr/bin/env bash
# Train on several machines: the same command on each.
set -euo pipefail
# shellcheck source=launch/torchrun.sh
. "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"

usage() {
    cat <<'TEXT'
usage: launch/node.sh --nodes N --head HOST[:PORT] --id ID [--workers N|auto] [--restarts N] [--wait SECONDS]
                      [--is-head auto|yes|no] [--logs DIR] [--] DIST_TRAIN_ARGUMENTS...

Run it on each of N machines ("nodes") with the same arguments; they train together once all are there.

  --nodes N          how many there are
  --nodes MIN:MAX    how many there may be: the others go on when one is lost or comes, if they are MIN
  --head HOST[:PORT] the node where all meet, by a name or address that each of them can reach (port 29500). The
                     launch ends with it
  --id ID            what tells this launch from any other, such as a job's number. With the id of an earlier launch on
                     the same run folder it resumes that, whatever the arguments say (docs/adr/launching.md)
  --workers N        worker processes on this node
  --workers auto     one a GPU, or one where there is none (the default)
  --restarts N       after a fault, such as a lost worker, link or node, start all workers anew up to N times (default
                     3); they resume from the newest checkpoint. Bad input and a stop on request are no faults
  --wait SECONDS     how long to wait for the head, and then for the other nodes, at the start and after a fault
                     (default 600)
  --is-head WORD     whether this node is the head. auto, the default, looks whether the head's address is one of its
                     own; say yes or no where that misleads: several nodes on one machine, addresses behind NAT
  --logs DIR         what each worker writes also goes to files of its own: DIR/HOST/LAUNCH/attempt_K/LOCAL_RANK/,
                     what torchrun logs to DIR/HOST/torchrun.log
  --check            say what a start would refuse, and end

The rest goes to dist_train.py: --config FILE [section.key=value ...]. The run's folder must be on storage that all
nodes share, and each needs the data.

SIGINT, SIGUSR1 or SIGHUP (a terminal that is closed, but not under nohup) to one node stops all of them. SIGTERM says
that this node goes away: send it to all to stop the run, else the others save, and wait for it to come back, or go on
without it if they are MIN.

Private networks only: whoever reaches the head's port runs code as you (docs/operations.md). The head listens there on
its own address alone. Workers connect to each other on ports of the system's choice, at the node's address in the
head's network. For another network, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to an interface such as eth0, on each.

Exits with dist_train.py's own code: 0 done, 2 bad input, 75 stopped and resumable.
PYTHON is the interpreter to use; by default that of .venv if make has set it up, else python3.
TEXT
}

nodes='' head='' id=''
is_head=auto
wait=600
while [ $# -gt 0 ]; do
    case $1 in
        --nodes | --workers | --restarts) option number "$@" && shift 2 ;;
        --head | --id | --is-head | --wait | --logs) option value "$@" && shift 2 ;;
        --nodes=* | --workers=* | --restarts=* | --head=* | --id=* | --is-head=* | --wait=* | --logs=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}"
            ;;
        --check) check=1 && shift ;;
        -h | --help) usage && exit ;;
        --) shift && break ;;
        *) own_words "$@" && break ;;
    esac
done
[ -n "$nodes" ] || fail "--nodes is missing; say how many machines train together, such as --nodes 2"
most=${nodes#*:}
if ! is_number "${nodes%%:*}" 1 || ! is_number "$most" "${nodes%%:*}"; then
    fail "--nodes is '$nodes'; it must be a number of at least 1, or MIN:MAX"
fi
[ -n "$head" ] || fail "--head is missing; name the node where all meet, such as --head node1"
[ -n "$id" ] || fail "--id is missing; give what no other launch has, such as the job's number"
[[ $id =~ ^[A-Za-z0-9._-]+$ ]] || fail "--id is '$id'; it must be of letters, digits, '.', '_' and '-'"
[[ $is_head =~ ^(auto|yes|no)$ ]] || fail "--is-head is '$is_head'; it must be auto, yes or no"
is_number "$wait" 1 || fail "--wait is '$wait'; it must be a number of seconds of at least 1"
check_options "auto"
[ $# -gt 0 ] || fail "nothing to run; see launch/node.sh --help"

find_python
first "$python" "$root/launch/meeting.py" check "$head" "$most" "$is_head" >"$scratch/meeting"
read -r is_host endpoint local_address interface <"$scratch/meeting"
if [ "$interface" != - ]; then
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-=$interface}
fi
count_workers
check_input "$most" "$id" "$@"
[ "$is_host" = true ] || first "$python" "$root/launch/meeting.py" wait "$endpoint" "$wait" no

train --nnodes "$nodes" --rdzv-backend meeting --rdzv-endpoint "$endpoint" --rdzv-id "$id" \
    --rdzv-conf "is_host=$is_host,join_timeout=$wait" --local-addr "$local_address" -- "$@"
