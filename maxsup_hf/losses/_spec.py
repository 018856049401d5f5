"""The description of a registered loss, `LossSpec`, and the checks of the arguments of `create_loss`."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import Tensor

from maxsup_hf.losses._schedules import SCHEDULES
from maxsup_hf.ops.row_stats import STATISTICS

Formula = Callable[..., tuple[Tensor, Tensor]]

# What a formula may take besides row statistics. Such a loss has no fast kernel.
INPUTS = ("logits", "target", "labels", "votes", "state")


@dataclass(frozen=True)
class LossSpec:
    """The description of a registered loss, or of a sum of losses; immutable.

    Attributes:
        name: the name for `create_loss`; `"a+b"` for a sum of losses.
        formula: `(arguments, **parameters and options) -> (target term, penalty)`, each (N,).
        weighted: the formula to use with class weights, which scale its first term and not its second.
        arguments: what the formula takes, in its order: names of row statistics and of `INPUTS`.
        parameters: names of the numeric parameters.
        options: name -> allowed values of each string or boolean option.
        defaults: keyword arguments of `create_loss` with their defaults: each parameter of the formula and its `_end`,
            `schedule`, `epochs` and `warmup_ratio`, and the options. In a sum each has its loss's name and a dot in front.
        bounds: parameter -> (lowest, highest) allowed value; a parameter without an entry must not be negative.
        citation: BibTeX of the paper that introduced the loss, or "".
        replaces_target: whether it replaces or smooths the cross-entropy term. A sum has at most one such loss.
        shift_invariant: whether adding a constant to all logits of a row changes neither value nor gradient.
        smoothing: `(classes, **parameters and options) -> s`, for a loss that spreads a share s of the label evenly over
            all classes; otherwise `None`.
        smoothing_term: for a loss with `smoothing` and class weights w, the formula of the term to add to `weighted`:
            s·(cross-entropy against the target w/K). It takes `cross_entropy` and `classes`.
        weighted_penalty: whether class weights also scale the penalty, because it depends on the label and can be negative.
        votes: for each summand that takes `votes`, the option that switches them on, or `None` if they are always needed.
        parts: for a sum, the description of each loss in it.
        penalties: for a sum, the penalty of each loss that does not replace the target term: name -> (formula without class
            weights, formula with class weights), each returning the weighted and the unweighted part.
        state: class of the state that the loss keeps between batches, or `None`.
    """

    name: str
    formula: Formula
    weighted: Formula
    arguments: tuple[str, ...]
    parameters: tuple[str, ...]
    options: Mapping[str, tuple[Any, ...]]
    defaults: Mapping[str, Any]
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    citation: str = ""
    replaces_target: bool = False
    shift_invariant: bool = True
    smoothing: Callable[..., Any] | None = None
    smoothing_term: Formula | None = None
    weighted_penalty: bool = False
    votes: tuple[str | None, ...] = ()
    parts: tuple[LossSpec, ...] = ()
    penalties: Mapping[str, tuple[Formula, Formula]] = field(default_factory=dict)
    state: type | None = None

    def summands(self, weighted: bool) -> dict[str, Formula]:
        """name -> formula of each of `penalties`, with class weights or without."""
        return {name: formulas[weighted] for name, formulas in self.penalties.items()}

    @property
    def statistics(self) -> tuple[str, ...]:
        """The row statistics among the arguments."""
        return tuple(name for name in self.arguments if name in STATISTICS)

    @property
    def needs_logits(self) -> bool:
        """Whether the formula needs more than row statistics."""
        return len(self.statistics) < len(self.arguments)

    @property
    def weighs_soft_labels(self) -> bool:
        """Whether class weights are defined for soft labels: the term that they scale must be a sum over classes."""
        return not self.weighted_penalty and (self.smoothing_term is not None or not self.replaces_target)

    @property
    def description(self) -> str:
        """The first line of the formula's docstring."""
        return (inspect.getdoc(self.formula) or "").partition("\n")[0]

    def resolve(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults and check every value.

        Args:
            kwargs: keyword arguments of `create_loss`; for a sum also nested, `{"maxsup": {"alpha": 0.1}}`.

        Raises:
            TypeError: an unknown keyword (the message suggests the closest), or a value of the wrong type.
            ValueError: a value that is NaN, infinite or out of bounds, an unknown option or schedule, or a schedule without
                an end value.
        """
        kwargs = flatten(kwargs)
        for key in kwargs:
            if key not in self.defaults:
                known = ", ".join(self.defaults) or "none"
                raise TypeError(
                    f"loss {self.name!r} has no parameter {key!r}{nearest(key, self.defaults)} (parameters: {known})"
                )
        values = {**self.defaults, **kwargs}
        for parameter in self.parameters:
            bounds = self.bounds.get(parameter, (0.0, math.inf))
            self._check_parameter(parameter, values[parameter], bounds)
            if values[f"{parameter}_end"] is not None:
                self._check_parameter(f"{parameter}_end", values[f"{parameter}_end"], bounds)
        for option in self.options:
            self._check_option(option, values[option])
        for prefix in {prefix_of(parameter) for parameter in self.parameters}:
            self._check_schedule(prefix, values, given=f"{prefix}schedule" in kwargs)
        return values

    def _check_option(self, option: str, value: Any) -> None:
        allowed = self.options[option]
        same_kind = isinstance(value, bool) is isinstance(allowed[0], bool)  # 1 == True, but is not a boolean
        if value not in allowed or not same_kind:
            known = " or ".join(map(repr, allowed))
            raise ValueError(f"{option} of loss {self.name!r} must be {known}, got {value!r}")

    def _check_parameter(self, key: str, value: Any, bounds: tuple[float, float]) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{key} of loss {self.name!r} must be a number, got {type(value).__name__} {value!r}")
        low, high = bounds
        if not (-math.inf < float(value) < math.inf and low <= float(value) <= high):
            allowed = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise ValueError(f"{key} of loss {self.name!r} must be finite and {allowed}, got {value!r}")

    def _check_schedule(self, prefix: str, values: Mapping[str, Any], given: bool) -> None:
        schedule, epochs = values[f"{prefix}schedule"], values[f"{prefix}epochs"]
        if not isinstance(schedule, str) or schedule not in SCHEDULES:
            known = ", ".join(map(repr, SCHEDULES))
            raise ValueError(f"{prefix}schedule of loss {self.name!r} must be one of {known}, got {schedule!r}")
        if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
            raise ValueError(f"{prefix}epochs of loss {self.name!r} must be a whole number of at least 1, got {epochs!r}")
        if schedule == "warmup" or values[f"{prefix}warmup_ratio"] is not None:
            self._check_parameter(f"{prefix}warmup_ratio", values[f"{prefix}warmup_ratio"], (1e-9, 1.0))
        ends = [f"{name}_end" for name in self.parameters if prefix_of(name) == prefix]
        if given and schedule != "constant" and all(values[end] is None for end in ends):
            raise ValueError(
                f"{prefix}schedule={schedule!r} of loss {self.name!r} has no effect without an end value: set "
                f"{' or '.join(ends)}"
            )


def flatten(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`{"maxsup": {"alpha": 0.1}}` -> `{"maxsup.alpha": 0.1}`; values that are not nested keep their keys."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": nested for inner, nested in value.items()}
        else:
            flat[key] = value
    return flat


def prefix_of(key: str) -> str:
    """The prefix of a parameter of a sum, "maxsup." of "maxsup.alpha"; "" for a single loss."""
    return key[: key.rfind(".") + 1]


def nearest(word: Any, known: Mapping[str, Any]) -> str:
    """The end of an error message that suggests the closest known word, or ""."""
    close = difflib.get_close_matches(str(word).lower().replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
