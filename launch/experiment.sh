#!/usr/bin/env bash
# Run jobs of a list of experiments, such as the paper's in configs/experiments/: launch/experiment.sh --help
# PYTHON is the interpreter to use; by default that of .venv if make has set it up, else python3.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=python3
if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
export PYTHON=${PYTHON:-$python}
if ! "$PYTHON" -c 'import sys; from importlib.util import find_spec as find; sys.exit(find("torch") is None)' 2>/dev/null; then
    echo "error: $PYTHON has no torch; run make setup, or set PYTHON" >&2
    exit 2
fi
# From wherever this is called: a job's paths are relative to there.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m dynsparse experiments "$@"
