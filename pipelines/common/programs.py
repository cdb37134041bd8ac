"""Programs that consist of verbs: `python -m pipelines VERB ...`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from pipelines.common import streams
from pipelines.common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, UserError
from pipelines.common.text import nearest


@dataclass(frozen=True)
class Program:
    """A program that imports only the verb that it is asked for: some take seconds to import."""

    name: str
    """Command line without the verb, such as `python -m pipelines`."""
    verbs: Mapping[str, tuple[str, str]]
    """Module and help text by verb. A module has `main(arguments)`, which returns the exit code, or None for 0."""
    note: str = ""
    """Last words of the usage."""
    version: str = ""
    """Printed by --version, where there is one."""

    @property
    def usage(self) -> str:
        """The text of --help."""
        width = max(map(len, self.verbs))
        lines = [f"  {verb:{width}} {text}" for verb, (_, text) in self.verbs.items()]
        last = f"{self.name} COMMAND --help says more. {self.note}".rstrip()
        return "\n".join([f"usage: {self.name} COMMAND ...", "", *lines, "", last])

    def start(self, arguments: Sequence[str]) -> NoReturn:
        """Run a verb as a process of its own, and end it."""
        streams.make_safe()  # Before anything opens a file.
        streams.log_in_lines(logging.WARNING)
        sys.exit(self.run(arguments))

    def run(self, arguments: Sequence[str]) -> int:
        """Run a verb, and return the exit code: 0 done, 2 bad input or output that could not be written."""
        try:
            code = self._main(arguments)
        except UserError as error:
            print("\n".join(f"error: {line}" for line in error.lines), file=sys.stderr)
            return EXIT_BAD_INPUT
        except SystemExit as ended:  # argparse's, after --help.
            code = int(ended.code or EXIT_DONE)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        if code == EXIT_DONE and (problem := streams.lost_output()):
            print(f"error: {problem}", file=sys.stderr)
            return EXIT_BAD_INPUT
        return code

    def _main(self, arguments: Sequence[str]) -> int:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(self.usage)
            return EXIT_DONE if arguments else EXIT_BAD_INPUT
        if self.version and arguments[0] == "--version":
            print(self.version)
            return EXIT_DONE
        verb, *rest = arguments
        if verb not in self.verbs:
            raise UserError(f"unknown command '{verb}'{nearest(verb, self.verbs)}; see {self.name} --help")
        return int(import_module(self.verbs[verb][0]).main(rest) or EXIT_DONE)
