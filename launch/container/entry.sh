#!/usr/bin/env bash
# What a container runs: a command such as tensorboard or python -m dynsparse, or the arguments of launch/local.sh.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
case ${1-} in
    -* | "") set -- "$root/launch/local.sh" "$@" ;;
esac
if ! type -P -- "$1" >/dev/null; then
    echo "error: there is no command '$1'; give one of this image, such as launch/local.sh, or --config FILE" >&2
    exit 2
fi
# In its place, so that it gets the signals.
exec "$@"
