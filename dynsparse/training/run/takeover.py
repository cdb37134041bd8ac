"""Another's lock: is its holder alive, and if not, remove it."""

from __future__ import annotations

import logging
import os
import time
from hashlib import sha256
from pathlib import Path

from dynsparse import files
from dynsparse.errors import UserError
from dynsparse.training.run import lock_file, names, timing
from dynsparse.training.run.holder import Holder
from dynsparse.training.run.lock_file import content_of
from dynsparse.training.run.watch import Watch

log = logging.getLogger(__name__)


class Takeover:
    """Looks at the lock at `path` for a start that wants it, and removes it if its holder has died."""

    def __init__(self, path: Path, launch: str | None, grace: float) -> None:
        """`grace` is in seconds: see `RunLock`."""
        self._path = path
        self._launch = launch
        self._grace = grace
        self._began = time.monotonic()
        self._watch = Watch()
        self._claimed: tuple[Path, float] | None = None

    def free(self) -> bool:
        """Tell whether the lock may be gone now; remove it if its holder has died. Waits a little if nobody knows.

        UserError if the holder lives.
        """
        content = content_of(self._path)
        if content is None:
            return True
        holder, lives = Holder.decode(content), self._lives(content)
        if lives and not self._will_end(holder):
            raise self._refusal(holder)
        if lives is False:
            self._remove(content)
            return True
        time.sleep(timing.POLL_SECONDS)
        return False

    def require_free(self, within: float) -> None:
        """Raise UserError if a holder of another launch is seen to live. Changes nothing; looks for so many seconds."""
        deadline = time.monotonic() + within
        while (content := content_of(self._path)) is not None:
            holder = Holder.decode(content)
            if self.is_of_my_launch(holder):
                return
            if lives := self._lives(content):
                raise self._refusal(holder)
            if lives is False or time.monotonic() >= deadline:
                return
            time.sleep(timing.POLL_SECONDS)

    def is_of_my_launch(self, holder: Holder | None) -> bool:
        """Tell whether the holder is an attempt of the same launch."""
        return holder is not None and self._launch is not None and holder.launch == self._launch

    def _lives(self, content: bytes) -> bool | None:
        """Tell whether the holder that `content` names lives; None while that is not known."""
        holder = Holder.decode(content)
        known = None if holder is None else holder.lives()
        if known is not None:
            return known
        changed = self._watch.look(content)
        if changed:
            return True
        return False if self._watch.silent > timing.STALE_SECONDS else None

    def _will_end(self, holder: Holder | None) -> bool:
        """Tell whether to wait for a live holder to end.

        Where machines come and go, a launch may start rank 0 on another one before it has ended on the first.
        """
        elsewhere = holder is not None and holder.lives() is None
        return elsewhere and self.is_of_my_launch(holder) and time.monotonic() - self._began < self._grace

    def _remove(self, content: bytes) -> None:
        """Remove the lock if it is still `content`. Of many starts that want to, the one that makes the claim does."""
        claim = self._path.with_name(names.claim(sha256(content).hexdigest()[:16]))
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._wait_for(claim)
            return
        try:
            if lock_file.take_away(self._path, lambda path: content_of(path) == content):
                self._tell(Holder.decode(content))
        finally:
            claim.unlink(missing_ok=True)

    def _tell(self, holder: Holder | None) -> None:
        is_gone = holder is None or holder.lives() is False
        why = "which is gone" if is_gone else f"which has shown no sign of life for {timing.STALE_SECONDS:g} s"
        log.warning("%s: left by %s, %s; taken over", self._path, holder or "a start that died", why)

    def _wait_for(self, claim: Path) -> None:
        """Wait a moment for the start that made the claim. A claim that stays is of a start that has died just then."""
        if self._claimed is None or self._claimed[0] != claim:
            self._claimed = claim, time.monotonic()
        if time.monotonic() - self._claimed[1] > timing.STALE_SECONDS:
            files.remove(claim)
        time.sleep(timing.POLL_SECONDS)

    def _refusal(self, holder: Holder | None) -> UserError:
        folder, user = self._path.parent, holder or "another start"
        return UserError(f"{folder} is in use by {user}; wait until it ends, stop it, or set name=")
