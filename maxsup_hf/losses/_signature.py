"""What a formula's signature says, and the checks that a formula must pass to be registered."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.losses._spec import INPUTS, Formula, LossSpec
from maxsup_hf.ops.row_stats import STATISTICS, row_stats


class Signature(NamedTuple):
    """The arguments of a formula.

    Attributes:
        arguments: the row statistics and `INPUTS` that it takes, in its order.
        parameters: name -> default value of each numeric parameter.
        options: name -> the allowed values of each string or boolean option.
        option_defaults: name -> default value of each option.
    """

    arguments: tuple[str, ...]
    parameters: dict[str, Any]
    options: dict[str, tuple[Any, ...]]
    option_defaults: dict[str, Any]


def read_signature(name: str, formula: Formula, choices: Mapping[str, Sequence[str]]) -> Signature:
    """Sort the arguments of a formula into row statistics, parameters and options.

    Args:
        name: of the loss, for error messages.
        choices: string option -> its allowed values.

    Raises:
        TypeError: an argument of another kind, or a parameter without a default.
    """
    arguments: list[str] = []
    parameters: dict[str, Any] = {}
    options: dict[str, tuple[Any, ...]] = {}
    option_defaults: dict[str, Any] = {}
    for argument in inspect.signature(formula).parameters.values():
        key, default = argument.name, argument.default
        if argument.kind is not argument.KEYWORD_ONLY:
            if key not in STATISTICS + INPUTS:
                raise TypeError(
                    f"argument {key!r} of loss {name!r} must be a row statistic ({', '.join(STATISTICS)}) or, without a "
                    f"fast kernel, one of {', '.join(INPUTS)}; put parameters after a bare *"
                )
            arguments.append(key)
        elif key in choices:
            options[key], option_defaults[key] = tuple(choices[key]), default
        elif isinstance(default, bool):
            options[key], option_defaults[key] = (True, False), default
        elif isinstance(default, Real):
            parameters[key] = default
        else:
            got = "none" if default is argument.empty else repr(default)
            raise TypeError(
                f"parameter {key!r} of loss {name!r} must have a numeric default, got {got}; if it is a string option, give "
                "its allowed values in choices"
            )
    for key in parameters:
        start = key.removesuffix("_end")
        if start in parameters and start != key:
            raise TypeError(
                f"{key!r} of loss {name!r} exists for every parameter {start!r} and must not be an argument of the formula; "
                f"set its default in the decorator: @register_loss({name!r}, {key}={parameters[key]!r})"
            )
    return Signature(tuple(arguments), parameters, options, option_defaults)


def default_values(name: str, signature: Signature, ends: Mapping[str, float | None]) -> dict[str, Any]:
    """The keyword arguments that `create_loss` accepts for this loss, with their defaults.

    Args:
        ends: default end values, by keys such as `alpha_end`.

    Raises:
        TypeError: an end value of something that is not a parameter.
    """
    known = [f"{parameter}_end" for parameter in signature.parameters]
    for end in ends:
        if end not in known:
            raise TypeError(
                f"register_loss got an unexpected argument {end!r}: expected the end value of a parameter of loss {name!r} "
                f"({', '.join(known) or 'it has no parameters'})"
            )
    defaults = signature.parameters | dict.fromkeys(known) | dict(ends)
    if signature.parameters:
        defaults |= {"schedule": "linear", "epochs": None, "warmup_ratio": None}
    return defaults | signature.option_defaults


def check_needs(name: str, needs: Mapping[str, str], signature: Signature) -> None:
    """Check the argument `needs` of `register_loss`."""
    for needed, option in needs.items():
        if needed != "votes" or needed not in signature.arguments or signature.options.get(option) != (True, False):
            raise TypeError(
                f"needs of loss {name!r} must map 'votes', which the formula must take, to one of its boolean options, got "
                f"{dict(needs)!r}"
            )


def check_smoothing(name: str, signature: Signature) -> None:
    """Check that a formula registered with `smoothing` takes the row statistics of label smoothing."""
    missing = {"cross_entropy", "label", "mean", "classes"} - set(signature.arguments)
    if missing:
        raise TypeError(
            f"smoothing of loss {name!r} requires a formula that takes cross_entropy, label, mean and classes, got one "
            f"without {', '.join(sorted(missing))}"
        )


def try_formula(spec: LossSpec) -> bool:
    """Evaluate a formula once as in training, so that a mistake shows when it is registered and not hours later.

    Returns:
        Whether its target term is the cross-entropy.

    Raises:
        TypeError: the formula fails, or does not return two values for each row.
    """
    rows, classes = 3, 4
    logits = torch.linspace(-1, 1, rows * classes, device="cpu").reshape(rows, classes)
    labels = torch.arange(rows, device="cpu")
    have = {**row_stats(logits, labels), "logits": logits, "target": labels, "labels": labels, "votes": None}
    have["state"] = spec.state() if spec.state else None
    values = {name: torch.tensor(float(spec.defaults[name]), device="cpu") for name in spec.parameters}
    options = {name: spec.defaults[name] for name in spec.options}
    try:
        found = spec.formula(*(have[name] for name in spec.arguments), **values, **options)
    except Exception as error:
        raise TypeError(
            f"loss {spec.name!r} failed on a batch of {rows} rows and {classes} classes: {error}. During training a "
            "parameter is a 0-dim tensor, whose value may change: write int(k) where k is a count"
        ) from error
    terms = found if isinstance(found, tuple) else (found,)
    if not isinstance(found, tuple) or len(found) != 2 or not all(_is_term(term, rows) for term in terms):
        got = ", ".join(str(tuple(term.shape)) if isinstance(term, Tensor) else str(term) for term in terms)
        raise TypeError(
            f"loss {spec.name!r} must return two tensors of shape (N,), the target term and the penalty of each row, not "
            f"averaged; for {rows} rows it returned {got}"
        )
    return found[0] is have["cross_entropy"]


def _is_term(term: Any, rows: int) -> bool:
    """Whether this is a value for each row, or a 0-dim zero, which stands for no term."""
    return isinstance(term, Tensor) and (term.shape == (rows,) or (term.ndim == 0 and not term))
