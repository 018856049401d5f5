"""What computing a loss returns: the loss, the cross-entropy in it, and the penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class _Reduced(NamedTuple):
    loss: Tensor
    cross_entropy: Tensor


class LossOutput(_Reduced):
    """A reduced loss and, detached, the plain cross-entropy in it; their difference is the penalty.

    Attributes:
        name: name of the loss.
        summands: for a sum of losses, the penalty of each.
    """

    name: str
    summands: Mapping[str, Tensor] | None

    def __new__(
        cls, loss: Tensor, cross_entropy: Tensor, name: str = "", summands: Mapping[str, Tensor] | None = None
    ) -> LossOutput:
        output = super().__new__(cls, loss, cross_entropy)
        output.name, output.summands = name, summands
        return output

    def map(self, function: Callable[[Tensor], Tensor]) -> LossOutput:
        """Apply a function to each tensor."""
        summands = None
        if self.summands is not None:
            summands = {name: function(penalty) for name, penalty in self.summands.items()}
        return LossOutput(function(self.loss), function(self.cross_entropy), self.name, summands)

    @property
    def penalty(self) -> Tensor:
        """What the loss adds to the cross-entropy, detached."""
        return self.loss.detach() - self.cross_entropy

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Name of each summand -> what it adds to the cross-entropy, reduced and detached; they add up to `penalty`."""
        if self.summands is None:
            return {self.name: self.penalty}
        # The one summand that replaces the cross-entropy term has no penalty of its own: it adds the rest.
        rest = self.penalty - sum(self.summands.values())
        names = [part.strip() for part in self.name.split("+")]
        return {name: self.summands.get(name, rest) for name in names}
