"""One run at a time in a folder: a lock that shows that its holder lives, and that is taken over if it does not.

The file lock.json is made by one process alone, names it, and gets a sign of
life every few seconds. Where the holder's process can be looked up, in the same
container of the same machine, that decides. Elsewhere, such as on another
machine that sees the same storage, a start watches the file: a sign of life
within `STALE_SECONDS` and it is refused; none, and the holder has died. Locks
of the operating system would need no watching, but network file systems leave
them out or keep them to one machine. Nobody's clock is compared with another's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

from dynsparse.distributed import sync
from dynsparse.errors import UserError
from dynsparse.training.holder import Holder, now

log = logging.getLogger(__name__)

NAME = "lock.json"
CLAIMS = "lock-*.partial"
BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Without a sign of life. Six beats: storage that others use too may stand still for a while."""
_POLL_SECONDS = 0.2


class RunLock:
    """The lock of a run's folder. For rank 0, which alone writes there."""

    def __init__(
        self, folder: Path, launch: str | None = None, *, grace: float = 0.0, on_loss: Callable[[str], None] = log.error
    ) -> None:
        """
        `grace`: for how many seconds to wait for an earlier attempt of the same
        launch on another machine to end, before it is a reason to refuse.
        `on_loss` is called, by another thread, with a sentence, should another
        run have taken the lock: this process stood still for too long.
        """
        self.path = folder / NAME
        self.launch = launch
        self.grace = grace
        self.on_loss = on_loss
        self._me = Holder.myself(launch)
        self._began = time.monotonic()
        self._watch = Watch()
        self._claimed: tuple[Path, float] | None = None
        self._made: list[Path] = []
        self._file = -1
        self._released = Event()
        self._thread: Thread | None = None

    def acquire(self, within: float = float("inf")) -> bool:
        """Take the lock. UserError if its holder lives, or where no file can be made.

        False if after `within` seconds it is not known yet whether the holder
        lives: to be called again, so that other ranks are told meanwhile.
        """
        deadline = time.monotonic() + within
        with self._said("written"):
            while not self._create():
                if not self._free() and time.monotonic() >= deadline:
                    return False
        for claim in self.path.parent.glob(CLAIMS):  # Of starts that died as they took over.
            claim.unlink(missing_ok=True)
        self._thread = Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return True

    def require_free(self, within: float) -> None:
        """Raise UserError if a holder of another launch is seen to live. Changes nothing; looks for so many seconds."""
        with self._said("read"):
            self._require_free(time.monotonic() + within)

    def _require_free(self, deadline: float) -> None:
        while (content := self._read()) is not None:
            holder = Holder.decode(content)
            if self._is_of_my_launch(holder):
                return
            if lives := self._lives(content):
                raise self._refusal(holder)
            if lives is False or time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give it back, and leave no folder that holds nothing else. Without effect if it is not held."""
        if self._thread is not None:
            self._released.set()
            self._thread.join(2 * BEAT_SECONDS)
            if self._thread.is_alive():  # The storage hangs, and must not keep the process.
                return
            self._thread = None
            with contextlib.suppress(OSError):
                if self._is_mine():
                    self.path.unlink()
            os.close(self._file)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _create(self) -> bool:
        """Make the file, which fails if there is one: on network file systems too."""
        folder = self.path.parent
        self._made += [one for one in (*reversed(folder.parents), folder) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            self._write(file)
        except OSError:
            self.path.unlink()
            os.close(file)
            raise
        self._file = file
        return True

    def _free(self) -> bool:
        """Whether the lock may be gone now: it is removed if its holder has died. Waits a little if nobody knows."""
        content = self._read()
        if content is None:
            return True
        holder, lives = Holder.decode(content), self._lives(content)
        if lives and not self._will_end(holder):
            raise self._refusal(holder)
        if lives is False:
            self._remove(content)
            return True
        time.sleep(_POLL_SECONDS)
        return False

    def _lives(self, content: bytes) -> bool | None:
        """Whether the holder that `content` tells of does; None while that is not known."""
        holder = Holder.decode(content)
        known = None if holder is None else holder.lives()
        if known is not None:
            return known
        changed = self._watch.look(content)
        if changed:
            return True
        return False if self._watch.silent > STALE_SECONDS else None

    def _will_end(self, holder: Holder | None) -> bool:
        """Where machines come and go, a launch may start rank 0 on another one before it has ended on the first."""
        elsewhere = holder is not None and holder.lives() is None
        return elsewhere and self._is_of_my_launch(holder) and time.monotonic() - self._began < self.grace

    def _is_of_my_launch(self, holder: Holder | None) -> bool:
        return holder is not None and self.launch is not None and holder.launch == self.launch

    def _remove(self, content: bytes) -> None:
        """Remove the lock if it is still `content`. Of many that want to, one does."""
        claim = self.path.with_name(f"lock-{sha256(content).hexdigest()[:16]}.partial")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._wait_for(claim)
            return
        try:
            if self._read() == content:
                self.path.unlink(missing_ok=True)
                holder = Holder.decode(content)
                log.warning("%s: left by %s, which is gone; taken over", self.path, holder or "a start that died")
        finally:
            claim.unlink(missing_ok=True)

    def _wait_for(self, claim: Path) -> None:
        """A moment. A claim that stays is of a start that has died just then."""
        if self._claimed is None or self._claimed[0] != claim:
            self._claimed = claim, time.monotonic()
        if time.monotonic() - self._claimed[1] > STALE_SECONDS:
            claim.unlink(missing_ok=True)
        time.sleep(_POLL_SECONDS)

    def _refusal(self, holder: Holder | None) -> UserError:
        return UserError(
            f"{self.path.parent} is in use by {holder or 'another start'}; wait until it ends, stop it, or set name="
        )

    def _read(self) -> bytes | None:
        """The content anew, past any cache of a network file system; None if there is no lock."""
        try:
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                self._show_life()
            except OSError:  # Storage that is full or away for the moment: the next beat may reach it.
                continue

    def _show_life(self) -> None:
        if not self.path.exists():
            # Somebody has removed the folder, which the next checkpoint brings back. Not this beat.
            if self.path.parent.exists():
                old = self._file
                if self._create():
                    os.close(old)
            return
        if self._is_mine():
            self._write(self._file)
            return
        self._released.set()
        holder = Holder.decode(self._read() or b"")
        self.on_loss(
            f"{self.path.parent} was taken over by {holder or 'another start'}: this process had stood still for more "
            f"than {STALE_SECONDS:g} s, or the folder was removed; it ends, and leaves the folder to it"
        )

    def _is_mine(self) -> bool:
        """By what stands there: the number of a file may be given again, and a handle of one that is gone be stale."""
        return Holder.decode(self._read() or b"") == self._me

    def _write(self, file: int) -> None:
        """All the way to the storage, for others to see: a network file system may keep it for half a minute."""
        os.pwrite(file, self._me.encode(now()), 0)
        os.fsync(file)

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Raise UserError for what the system says. `what` cannot be done."""
        folder = self.path.parent
        try:
            yield
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{folder}: not a folder; set name= or runs=") from None
        except IsADirectoryError:
            raise UserError(f"{self.path}: is a folder; remove it, or set name=") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be {what} ({error.strerror}); set runs= to a folder that can") from None


class Watch:
    """For how long the content of a file has stayed as it is, as far as looks at it can tell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._content: bytes | None = None
        self._looked = 0.0
        self.silent = 0.0
        """Seconds. Between two looks a second at most: while storage stood still the holder could not write either."""

    def look(self, content: bytes) -> bool:
        """Whether it is another than at the look before."""
        before, self._content = self._content, content
        passed, self._looked = self._clock() - self._looked, self._clock()
        changed = before is not None and before != content
        self.silent = 0.0 if before is None or changed else self.silent + min(passed, 1.0)
        return changed


@contextlib.contextmanager
def holding(lock: RunLock, patience: float) -> Iterator[None]:
    """A collective: rank 0 holds `lock` for the time of the block. UserError on all ranks if it cannot be had.

    `patience`: after how many seconds the others, which wait, hear that it goes on.
    """
    try:
        while not sync.from_rank_0(lambda: lock.acquire(patience)):
            pass
        yield
    finally:
        lock.release()
