"""The round in which each of several optimizers has its turn, and that leads to one step."""

from __future__ import annotations


class Round:
    """Record of the turns of a round. Optimizers go by their numbers among the given ones.

    A round is over when each has had its turn: it made its step, or a GradScaler skipped that. It counts as a step if
    any made one.
    """

    def __init__(self, optimizers: int) -> None:
        """`optimizers`: how many there are."""
        self.optimizers = optimizers
        self.turns: dict[int, bool] = {}
        """Optimizers that had their turn, and whether each made its step."""
        self.is_open = False
        """Whether nobody is to ask if the step is made."""
        self.is_left_open = False
        """Whether nobody is to ask in the coming round, which may have to wait for one that is not over."""
        self._unscaled: set[int] = set()
        """Optimizers whose gradients a scaler has unscaled, and that have had no turn since."""

    @property
    def has_stepped(self) -> bool:
        """Whether an optimizer has made its step."""
        return any(self.turns.values())

    @property
    def is_over(self) -> bool:
        """Whether each optimizer had its turn."""
        return len(self.turns) == self.optimizers

    def begin(self) -> None:
        """Forget the round that is over."""
        self.is_open = self.is_left_open = False
        self.turns.clear()

    def open(self) -> None:
        """Begin the first step of the round, which may have been left open."""
        self.is_open, self.is_left_open = self.is_left_open, False

    def unscaled(self, number: int) -> None:
        """Take note that a scaler has unscaled an optimizer's gradients: its turn is next."""
        self._unscaled.add(number)

    def takes_unscaled(self, number: int) -> bool:
        """Return whether an optimizer's turn was next, which now begins."""
        if number not in self._unscaled:
            return False
        self._unscaled.remove(number)
        return True
