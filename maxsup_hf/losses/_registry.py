"""The registry: a loss is a formula on the numbers of a row, described once and found by its name."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.logit_stats import NUMBERS, logit_stats
from maxsup_hf.schedules import SCHEDULES

Formula = Callable[..., tuple[Tensor, Tensor]]

# Names Python files with losses of one's own (several with os.pathsep between). A variable, and not a flag, because it
# reaches every process that a command starts: launchers, the runs of a comparison, workers.
OWN = "MAXSUP_HF_LOSSES"

# What a formula can ask for beside the numbers of a row. Such a loss takes the plain path, without a fast kernel.
INPUTS = ("logits", "target", "labels", "votes", "state")


@dataclass(frozen=True)
class LossSpec:
    """What the registry knows of a loss; nothing here changes after registration.

    Attributes:
        name: what users type; `"a+b"` for a sum of losses.
        formula: `(arguments, **parameters and options) -> (term on the label, penalty)`, each (N,).
        arguments: what the formula takes, in its order: names of row numbers and of `INPUTS`.
        parameters: its numbers.
        options: its words and switches, with what each may be.
        defaults: keyword arguments of `create_loss` with their defaults: each parameter of the formula, its `_end`,
            `schedule`, `epochs` and `warmup_ratio`, and the options. In a sum each carries its loss's name and a dot.
        bounds: parameter -> (lowest, highest) allowed value; a parameter without an entry must not be negative.
        citation: BibTeX of the paper that the loss comes from, or "".
        replaces_target: whether it is another term on the label than cross-entropy, or smooths the label. A sum has at most
            one such loss.
        shift_invariant: whether adding a constant to all logits of a row changes neither value nor gradient.
        state: class of what the loss remembers from batch to batch, or `None`.
    """

    name: str
    formula: Formula
    arguments: tuple[str, ...]
    parameters: tuple[str, ...]
    options: Mapping[str, tuple[Any, ...]]
    defaults: Mapping[str, Any]
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    citation: str = ""
    replaces_target: bool = False
    shift_invariant: bool = True
    state: type | None = None

    @property
    def numbers(self) -> tuple[str, ...]:
        """The row numbers among the arguments."""
        return tuple(name for name in self.arguments if name in NUMBERS)

    @property
    def needs_logits(self) -> bool:
        """Whether row numbers are not enough for the formula."""
        return len(self.numbers) < len(self.arguments)

    @property
    def description(self) -> str:
        """The first line of the formula's docstring."""
        return (inspect.getdoc(self.formula) or "").partition("\n")[0]

    def resolve(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults and check every value.

        Args:
            kwargs: keyword arguments of `create_loss`; for a sum also nested, `{"maxsup": {"alpha": 0.1}}`.

        Raises:
            TypeError: a keyword that the loss does not have (the message names the nearest), or a value of a wrong type.
            ValueError: a value that is NaN, infinite or out of bounds, an unknown word, or a schedule that moves nothing.
        """
        kwargs = flatten(kwargs)
        for key in kwargs:
            if key not in self.defaults:
                takes = ", ".join(self.defaults) or "none"
                raise TypeError(
                    f"loss {self.name!r} has no parameter {key!r}{_nearest(key, self.defaults)} (it takes: {takes})"
                )
        values = {**self.defaults, **kwargs}
        for parameter in self.parameters:
            bounds = self.bounds.get(parameter, (0.0, math.inf))
            self._check_number(parameter, values[parameter], bounds)
            if values[f"{parameter}_end"] is not None:
                self._check_number(f"{parameter}_end", values[f"{parameter}_end"], bounds)
        for option, allowed in self.options.items():
            if values[option] not in allowed or isinstance(values[option], bool) is not isinstance(allowed[0], bool):
                known = " or ".join(map(repr, allowed))
                raise ValueError(f"{option} of loss {self.name!r} must be {known}, got {values[option]!r}")
        for prefix in {prefix_of(parameter) for parameter in self.parameters}:
            self._check_schedule(prefix, values, given=f"{prefix}schedule" in kwargs)
        return values

    def _check_number(self, key: str, value: Any, bounds: tuple[float, float]) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{key} of loss {self.name!r} must be a number, got {type(value).__name__} {value!r}")
        low, high = bounds
        if not (math.isfinite(value) and low <= float(value) <= high):
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
            self._check_number(f"{prefix}warmup_ratio", values[f"{prefix}warmup_ratio"], (1e-9, 1.0))
        ends = [f"{name}_end" for name in self.parameters if prefix_of(name) == prefix]
        if given and schedule != "constant" and all(values[end] is None for end in ends):
            raise ValueError(
                f"{prefix}schedule={schedule!r} of loss {self.name!r} moves nothing: say where to, with {' or '.join(ends)}"
            )


_SPECS: dict[str, LossSpec] = {}


def register_loss(
    name: str,
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    citation: str = "",
    replaces_target: bool = False,
    shift_invariant: bool = True,
    state: type | None = None,
    **ends: float | None,
) -> Callable[[Formula], Formula]:
    """Decorator that puts a formula on `create_loss`, the `--loss` flag and everything built on them::

        @register_loss("half_maxsup")
        def half_maxsup(cross_entropy, top, mean, *, alpha=0.1):
            return cross_entropy, alpha / 2 * (top - mean)

    The positional arguments of the formula name the row numbers that it needs (`maxsup_hf.logit_stats.NUMBERS`), each of
    shape (N,). Its keyword-only arguments are the parameters, numbers with a default, and the options, words or booleans
    with a default. In training a parameter comes as a 0-dim tensor, for its value may move: write `int(k)` for a count.
    It returns two (N,) tensors: the term on the label, which class weights scale, and the penalty, which
    they do not. The loss is their sum.

    A formula that cannot do with row numbers may also ask for `logits` (N, K), float32 or float64, −inf where a class is
    masked and 0 in ignored rows; `labels` (N,), class indices (soft labels are then refused); `target`, either; `votes`
    (N, P), see `Loss.compute`; and `state`. It is then computed plainly, without a fast kernel.

    Args:
        name: a new name, without "+" and ".".
        bounds: parameter -> (lowest, highest); without an entry a parameter must be finite and not negative.
        choices: option -> the words that it may be.
        citation: BibTeX of the source.
        replaces_target: the loss has a term on the label of its own, so that it does not add to another such loss.
        shift_invariant: adding a constant to all logits changes neither value nor gradient.
        state: class of what the loss remembers, see `maxsup_hf.losses.online_label_smoothing`.
        **ends: default end of a scheduled parameter, as `alpha_end=0.2`; without one the default is constant.

    Raises:
        ValueError: the name is taken, or has a "+" or a ".".
        TypeError: an argument of the formula is no row number, a parameter has no default, or the formula, which is tried
            on a small batch, fails or returns something else.
    """

    def register(formula: Formula) -> Formula:
        if name in _SPECS and _SPECS[name].formula.__module__ != formula.__module__:
            raise ValueError(f"a loss named {name!r} is registered already (by {_SPECS[name].formula.__module__})")
        if "+" in name or "." in name:
            raise ValueError(f"name must have no '+' and no '.', which put losses together, got {name!r}")
        arguments: list[str] = []
        parameters: dict[str, Any] = {}
        switches: dict[str, Any] = {}
        options: dict[str, tuple[Any, ...]] = {}
        for argument in inspect.signature(formula).parameters.values():
            if argument.kind is not argument.KEYWORD_ONLY:
                if argument.name not in NUMBERS + INPUTS:
                    raise TypeError(
                        f"argument {argument.name!r} of loss {name!r} is no row number (these are: {', '.join(NUMBERS)}; "
                        f"slower ones may ask for {', '.join(INPUTS)}); put parameters behind a bare *"
                    )
                arguments.append(argument.name)
            elif argument.name in (choices or {}) or isinstance(argument.default, bool):
                switches[argument.name] = argument.default
                options[argument.name] = tuple((choices or {}).get(argument.name, (True, False)))
            elif isinstance(argument.default, Real):
                parameters[argument.name] = argument.default
            else:
                raise TypeError(f"parameter {argument.name!r} of loss {name!r} needs a number as its default, or choices")
        for end in parameters:
            if end.removesuffix("_end") in parameters.keys() - {end}:
                raise TypeError(
                    f"{end!r} of loss {name!r} comes with {end.removesuffix('_end')!r}, and is no parameter of the formula; "
                    f"say its default to the decorator: @register_loss({name!r}, {end}={parameters[end]!r})"
                )
        defaults = parameters | {f"{parameter}_end": None for parameter in parameters}
        for end in ends:
            if end not in defaults or not end.endswith("_end"):
                raise TypeError(f"register_loss got {end!r}, which is not the end of a parameter of loss {name!r}")
        defaults |= ends
        if parameters:
            defaults |= {"schedule": "linear", "epochs": None, "warmup_ratio": None}
        spec = LossSpec(
            name=name,
            formula=formula,
            arguments=tuple(arguments),
            parameters=tuple(parameters),
            options=MappingProxyType(options),
            defaults=MappingProxyType(defaults | switches),
            bounds=MappingProxyType(dict(bounds or {})),
            citation=citation,
            replaces_target=replaces_target,
            shift_invariant=shift_invariant,
            state=state,
        )
        spec.resolve({})
        _try(spec)
        _SPECS[name] = spec
        return formula

    return register


def _try(spec: LossSpec) -> None:
    """Compute a formula once, as training does: a mistake in it shows when it is registered, not after hours.

    Raises:
        TypeError: it fails, or returns something else than two terms for each row.
    """
    rows, classes = 3, 4
    logits = torch.linspace(-1, 1, rows * classes, device="cpu").reshape(rows, classes)
    labels = torch.arange(rows, device="cpu")
    have = {**logit_stats(logits, labels, NUMBERS), "logits": logits, "target": labels, "labels": labels, "votes": None}
    have["state"] = spec.state() if spec.state else None
    values = {name: torch.tensor(float(spec.defaults[name]), device="cpu") for name in spec.parameters}
    options = {name: spec.defaults[name] for name in spec.options}
    try:
        found = spec.formula(*(have[name] for name in spec.arguments), **values, **options)
    except Exception as error:
        raise TypeError(
            f"loss {spec.name!r} fails on {rows} rows of {classes} classes: {error}. In training a parameter is a 0-dim "
            "tensor, whose value may move: write int(k) where k is a count"
        ) from error
    if not (isinstance(found, tuple) and len(found) == 2 and all(_is_of_rows(term, rows) for term in found)):
        got = [tuple(x.shape) if isinstance(x, Tensor) else x for x in (found if isinstance(found, tuple) else [found])]
        raise TypeError(
            f"loss {spec.name!r} must return two tensors of shape (N,), the term on the label and the penalty of each row, "
            f"not averaged; of {rows} rows it returned {', '.join(map(str, got))}"
        )


def _is_of_rows(term: Any, rows: int) -> bool:
    """Or a 0-dim zero, for no term."""
    return isinstance(term, Tensor) and (term.shape == (rows,) or (term.ndim == 0 and not term))


_loaded: set[str] = set()


def _load_own() -> None:
    """Run the files that the environment names, each once."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    for name in filter(None, os.environ.get(OWN, "").split(os.pathsep)):
        path = str(Path(name).resolve())
        if path in _loaded or (main and path == str(Path(main).resolve())):
            continue
        if not os.path.isfile(path):
            raise ValueError(f"{OWN} must name Python files with losses, got {name!r}, which is not a file")
        _loaded.add(path)
        spec = spec_from_file_location(Path(path).stem, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{OWN} must name Python files with losses, got {name!r}, which does not end in .py")
        try:
            spec.loader.exec_module(module_from_spec(spec))
        except (ValueError, TypeError):
            raise
        except Exception as error:
            raise ValueError(f"{OWN}: {name!r} cannot be run: {type(error).__name__}: {error}") from error


def list_losses() -> list[str]:
    """Names of all registered losses, sorted; also those of the files that the variable MAXSUP_HF_LOSSES names."""
    _load_own()
    return sorted(_SPECS)


def get_spec(name: str) -> LossSpec:
    """What the registry knows of a loss, or of a sum of losses, `"maxsup+z_loss"`.

    Raises:
        TypeError: `name` is not a string.
        ValueError: no loss has this name (the message names the nearest), or losses that do not add up.
    """
    if not isinstance(name, str):
        raise TypeError(f"loss must be a name, one of {', '.join(list_losses())}, got {type(name).__name__} {name!r}")
    if "+" in name:
        return _add([get_spec(part.strip()) for part in name.split("+")])
    _load_own()
    if name not in _SPECS:
        raise ValueError(
            f"unknown loss {name!r}{_nearest(name, _SPECS)} (registered: {', '.join(list_losses())}; files with others are "
            f"named by the variable {OWN})"
        )
    return _SPECS[name]


def _add(parts: list[LossSpec]) -> LossSpec:
    """The sum of losses: one term on the label, and everyone's penalty."""
    names = [spec.name for spec in parts]
    name = "+".join(names)
    if len(set(names)) < len(names):
        raise ValueError(f"loss {name!r} names a loss twice: raise its strength instead")
    rules = [spec.name for spec in parts if spec.replaces_target]
    if len(rules) > 1:
        raise ValueError(
            f"loss {name!r} has no meaning: {' and '.join(map(repr, rules))} each say what the term on the label is, and "
            "there is one label. Keep one of them; penalties on the logits can be added to it"
        )
    arguments = tuple(dict.fromkeys(("cross_entropy", *(argument for spec in parts for argument in spec.arguments))))

    def formula(*given: Any, **values: Any) -> tuple[Tensor, Tensor]:
        have = dict(zip(arguments, given, strict=True))
        label_term, penalties = have["cross_entropy"], []
        for spec in parts:
            own = {key.removeprefix(f"{spec.name}."): v for key, v in values.items() if prefix_of(key) == f"{spec.name}."}
            term, penalty = spec.formula(*(have[argument] for argument in spec.arguments), **own)
            label_term = term if spec.replaces_target else label_term
            penalties.append(penalty)
        return label_term, reduce(operator.add, penalties)

    formula.__doc__ = "; ".join(spec.description for spec in parts)

    def prefixed(items: str) -> dict[str, Any]:
        return {f"{spec.name}.{key}": value for spec in parts for key, value in getattr(spec, items).items()}

    return LossSpec(
        name=name,
        formula=formula,
        arguments=arguments,
        parameters=tuple(f"{spec.name}.{parameter}" for spec in parts for parameter in spec.parameters),
        options=MappingProxyType(prefixed("options")),
        defaults=MappingProxyType(prefixed("defaults")),
        bounds=MappingProxyType(prefixed("bounds")),
        citation="\n\n".join(spec.citation for spec in parts if spec.citation),
        replaces_target=bool(rules),
        shift_invariant=all(spec.shift_invariant for spec in parts),
        state=next((spec.state for spec in parts if spec.state), None),
    )


def flatten(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`{"maxsup": {"alpha": 0.1}}` -> `{"maxsup.alpha": 0.1}`; what is not nested stays."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def prefix_of(key: str) -> str:
    """The loss's name and a dot in front of a parameter of a sum, "" for a loss alone."""
    return key[: key.rfind(".") + 1]


def _nearest(word: Any, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(word).lower().replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
