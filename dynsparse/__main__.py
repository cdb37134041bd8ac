"""`python -m dynsparse VERB ...`: the same as the command `dynsparse`."""

from __future__ import annotations

from dynsparse.cli.main import program

if __name__ == "__main__":
    program()
