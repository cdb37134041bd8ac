"""A thread that writes while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread


class InBackground:
    """Runs one act at a time in a thread of its own.

    The process does not end before the act does, unless by a signal or os._exit.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, act: Callable[[], None]) -> None:
        """Wait for the act before, then start this one."""
        self.wait()
        self._thread = Thread(target=self._run, args=(act,), name="background")
        self._thread.start()

    def _run(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self._error = error

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing runs, or so long. Returns whether nothing does. Raises what the act raised, once."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error
        return True
