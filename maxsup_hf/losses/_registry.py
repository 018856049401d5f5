"""The registry: a loss is a formula on the numbers of a row, described once and found by its name."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any

from torch import Tensor

from maxsup_hf.logit_stats import NUMBERS
from maxsup_hf.schedules import SCHEDULES

Formula = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LossSpec:
    """What the registry knows of a loss; nothing here changes after registration.

    Attributes:
        name: what users type.
        formula: (row numbers, **parameters) -> (term on the label, penalty), each (N,).
        numbers: the row numbers that the formula takes, in its order.
        defaults: keyword arguments of `create_loss` with their defaults: each parameter of the formula, its `_end`, and
            `schedule` and `epochs`.
        bounds: parameter -> (lowest, highest) allowed value; a parameter without an entry must not be negative.
        citation: BibTeX of the paper that the loss comes from, or "".
    """

    name: str
    formula: Formula
    numbers: tuple[str, ...]
    parameters: tuple[str, ...]
    defaults: Mapping[str, Any]
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    citation: str = ""

    @property
    def description(self) -> str:
        """The first line of the formula's docstring."""
        return (inspect.getdoc(self.formula) or "").partition("\n")[0]

    def resolve(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults and check every value.

        Raises:
            TypeError: a keyword that the loss does not have (the message names the nearest), or a value of a wrong type.
            ValueError: a value that is NaN, infinite or out of bounds, or an unknown schedule.
        """
        for key in kwargs:
            if key not in self.defaults:
                takes = ", ".join(self.defaults) or "none"
                raise TypeError(
                    f"loss {self.name!r} has no parameter {key!r}{_nearest(key, self.defaults)} (it takes: {takes})"
                )
        values = {**self.defaults, **kwargs}
        for parameter in self.parameters:
            self._check_number(parameter, values[parameter], parameter)
            if values[f"{parameter}_end"] is not None:
                self._check_number(f"{parameter}_end", values[f"{parameter}_end"], parameter)
        if self.parameters:
            self._check_schedule(values["schedule"], values["epochs"])
        return values

    def _check_number(self, key: str, value: Any, parameter: str) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{key} of loss {self.name!r} must be a number, got {type(value).__name__} {value!r}")
        low, high = self.bounds.get(parameter, (0.0, math.inf))
        if not (math.isfinite(value) and low <= float(value) <= high):
            allowed = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise ValueError(f"{key} of loss {self.name!r} must be finite and {allowed}, got {value!r}")

    def _check_schedule(self, schedule: Any, epochs: Any) -> None:
        if not isinstance(schedule, str) or schedule not in SCHEDULES:
            known = ", ".join(map(repr, SCHEDULES))
            raise ValueError(f"schedule of loss {self.name!r} must be one of {known}, got {schedule!r}")
        if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
            raise ValueError(f"epochs of loss {self.name!r} must be a whole number of at least 1, got {epochs!r}")


_SPECS: dict[str, LossSpec] = {}


def register_loss(
    name: str,
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    citation: str = "",
    **ends: float | None,
) -> Callable[[Formula], Formula]:
    """Decorator that puts a formula on `create_loss`, the `--loss` flag and everything built on them.

        @register_loss("half_maxsup")
        def half_maxsup(cross_entropy, top, mean, *, alpha=0.1):
            return cross_entropy, alpha / 2 * (top - mean)

    The positional arguments of the formula name the row numbers that it needs (`maxsup_hf.logit_stats.NUMBERS`), each of
    shape (N,). Its keyword-only arguments are the parameters: numbers with a default. It returns two (N,) tensors: the
    term on the label, which class weights scale, and the penalty, which they do not. The loss is their sum.

    Args:
        name: a new name.
        bounds: parameter -> (lowest, highest); without an entry a parameter must be finite and not negative.
        citation: BibTeX of the source.
        **ends: default end of a scheduled parameter, as `alpha_end=0.2`; without one the default is constant.

    Raises:
        ValueError: the name is taken.
        TypeError: an argument of the formula is no row number, or a parameter has no numeric default.
    """

    def register(formula: Formula) -> Formula:
        if name in _SPECS and _SPECS[name].formula.__module__ != formula.__module__:
            raise ValueError(f"a loss named {name!r} is registered already (by {_SPECS[name].formula.__module__})")
        numbers: list[str] = []
        defaults: dict[str, Any] = {}
        for argument in inspect.signature(formula).parameters.values():
            if argument.kind is argument.KEYWORD_ONLY:
                if isinstance(argument.default, bool) or not isinstance(argument.default, Real):
                    raise TypeError(f"parameter {argument.name!r} of loss {name!r} needs a number as its default")
                defaults[argument.name] = argument.default
            elif argument.name in NUMBERS:
                numbers.append(argument.name)
            else:
                raise TypeError(
                    f"argument {argument.name!r} of loss {name!r} is no row number (these are: {', '.join(NUMBERS)}); "
                    "put parameters behind a bare *"
                )
        parameters = tuple(defaults)
        defaults |= {f"{parameter}_end": None for parameter in parameters}
        if parameters:
            defaults |= {"schedule": "linear", "epochs": None}
        for end in ends:
            if end not in defaults or not end.endswith("_end"):
                raise TypeError(f"register_loss got {end!r}, which is not the end of a parameter of loss {name!r}")
        spec = LossSpec(
            name=name,
            formula=formula,
            numbers=tuple(numbers),
            parameters=parameters,
            defaults=MappingProxyType(defaults | ends),
            bounds=MappingProxyType(dict(bounds or {})),
            citation=citation,
        )
        spec.resolve({})
        _SPECS[name] = spec
        return formula

    return register


def list_losses() -> list[str]:
    """Names of all registered losses, sorted."""
    return sorted(_SPECS)


def get_spec(name: str) -> LossSpec:
    """What the registry knows of a loss.

    Raises:
        TypeError: `name` is not a string.
        ValueError: no loss has this name; the message names the nearest.
    """
    if not isinstance(name, str):
        raise TypeError(f"loss must be a name, one of {', '.join(list_losses())}, got {type(name).__name__} {name!r}")
    if name not in _SPECS:
        raise ValueError(f"unknown loss {name!r}{_nearest(name, _SPECS)} (registered: {', '.join(list_losses())})")
    return _SPECS[name]


def _nearest(word: Any, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(word).lower().replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
