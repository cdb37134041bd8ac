"""A run on disk: checkpoints and observers' files, from its start to its end."""

from __future__ import annotations

from dynsparse.distributed import sync
from dynsparse.errors import UserError
from dynsparse.training.callbacks import Observers, Summary
from dynsparse.training.checkpoint import CheckpointFolder, SaveTimer
from dynsparse.training.network import Network
from dynsparse.training.outcomes import Outcomes
from dynsparse.training.reports import Reporter
from dynsparse.training.state import RunState
from dynsparse.training.waiting import wait_for_storage


class Saving:
    """Saves a run and tells its observers when it begins and ends. All but `retry` and `is_due` are collectives."""

    def __init__(
        self,
        run: RunState,
        outcomes: Outcomes,
        network: Network,
        reporter: Reporter,
        observers: Observers,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        self.run = run
        self.outcomes = outcomes
        self.network = network
        self.reporter = reporter
        self.observers = observers
        self.checkpoints = checkpoints
        """The folder to save into, on rank 0; None: nowhere."""
        self.timer = SaveTimer(run.config.checkpoint.every_minutes if run.worker.is_main else None)

    def start(self, *, resumed: bool) -> None:
        """Tell the observers that the run begins. UserError if a new run cannot be written down."""
        sync.together(lambda: self.observers.on_start(self.reporter.run_report(resumed=resumed)))
        wait_for_storage(self._behind, self._write_again)
        failures = sync.from_rank_0(lambda: self.observers.failures("start"))
        if failures and not resumed:
            raise UserError(*failures)  # Nothing is lost yet: better to stop here than to train unseen.

    def retry(self) -> None:
        """Try again to name the checkpoints that could not be named."""
        if self.checkpoints is not None:
            self.checkpoints.retry()

    def is_due(self, *, by_clock: bool) -> bool:
        """Whether to save after this step: the same on every rank, for `by_clock` is rank 0's.

        Not while steps are skipped: the checkpoints from before are to stay. Where it is time, the host waits to know.
        """
        every = self.run.config.checkpoint.every_steps
        if not (by_clock or (every is not None and self.run.progress.step % every == 0)):
            return False
        self.outcomes.catch_up()
        return not self.run.progress.skipped_in_a_row

    def save(self, *, best: bool = False, initial: bool = False, latest: bool = True) -> None:
        """Take a snapshot on rank 0, which writes it in the background; the others hand over what is theirs.

        Changes nothing in the run. Nobody waits for the disk, unless it still has the save before to write. If not
        `latest`, a run resumes from a save before.
        """
        if latest:
            self.timer.saved()
        ranks = sync.gather(self.run.of_this_rank())
        self.await_writer()
        self.observers.write()  # A resume from this checkpoint finds all lines of before it.
        if ranks is not None and self.checkpoints is not None:
            self.run.progress.seconds = self.reporter.seconds
            content = self.run.snapshot(ranks)
            more = {"initial_weights": dict(self.network.initial_weights)} if initial else {}
            step = self.run.progress.step
            self.checkpoints.begin(lambda: {**content(), **more}, step, best=best, initial=initial, latest=latest)

    def end(self, status: str, cause: UserError | None = None) -> Summary:
        """Tell the observers how the run ended. UserError if not all is on disk, after the lines of its `cause`."""
        summary = self.reporter.summary(status)
        self.await_writer()  # What the summary tells of is on disk by then, or known to be missing.
        self.observers.on_end(summary)
        wait_for_storage(self._behind, self._write_again)
        if lost := sync.from_rank_0(self._lost):
            raise UserError(*(cause.lines if cause else ()), *lost)
        return summary

    def await_writer(self) -> None:
        """Wait until rank 0 has written: together, lest a slow disk be taken for a rank that hangs."""
        patience = self.run.config.distributed.timeout_seconds / 4
        while sync.any_rank(self.checkpoints is not None and not self.checkpoints.has_written(within=patience)):
            pass

    def _behind(self) -> list[str]:
        """Files that could not be written yet."""
        return [*(self.checkpoints.behind if self.checkpoints is not None else ()), *self.observers.behind]

    def _write_again(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.retry(now=True)
        self.await_writer()
        self.observers.write(sync=True)

    def _lost(self) -> list[str]:
        """A line for each file that is not whole at the end."""
        failures = self.checkpoints.failures if self.checkpoints is not None else []
        return [*failures, *self.observers.failures("end")]
