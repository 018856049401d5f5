"""The registry: a loss is a formula on per-row statistics, described once and found by its name."""

from __future__ import annotations

import inspect
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.losses._spec import INPUTS, Formula, LossSpec, nearest, prefix_of
from maxsup_hf.ops.row_stats import STATISTICS as NUMBERS
from maxsup_hf.ops.row_stats import row_stats

# Names Python files with losses of one's own (several with os.pathsep between). A variable, and not a flag, because it
# reaches every process that a command starts: launchers, the runs of a comparison, workers.
OWN = "MAXSUP_HF_LOSSES"

_SPECS: dict[str, LossSpec] = {}


def register_loss(
    name: str,
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    citation: str = "",
    replaces_target: bool = False,
    shift_invariant: bool = True,
    smoothing: Callable[..., Any] | None = None,
    weighted_penalty: bool | None = None,
    needs: Mapping[str, str] | None = None,
    state: type | None = None,
    **ends: float | None,
) -> Callable[[Formula], Formula]:
    """Decorator that puts a formula on `create_loss`, the `--loss` flag and everything built on them::

        @register_loss("half_maxsup")
        def half_maxsup(cross_entropy, top, mean, *, alpha=0.1):
            return cross_entropy, alpha / 2 * (top - mean)

    The positional arguments of the formula name the row statistics it needs (`maxsup_hf.ops.row_stats.STATISTICS`), each of
    shape (N,). Its keyword-only arguments are the parameters, numbers with a default, and the options, words or booleans
    with a default. In training a parameter comes as a 0-dim tensor, for its value may move: write `int(k)` for a count.
    It returns two (N,) tensors: the target term, which class weights scale, and the penalty, which they do not (but see
    `weighted_penalty`). The loss is their sum.

    A formula that cannot do with row statistics may also ask for `logits` (N, K), float32 or float64, −inf where a class is
    masked and 0 in ignored rows; `labels` (N,), class indices (soft labels are then refused); `target`, either; `votes`
    (N, P), see `Loss.forward`; and `state`. It is then computed plainly, without a fast kernel.

    Args:
        name: a new name, without "+" and ".".
        bounds: parameter -> (lowest, highest); without an entry a parameter must be finite and not negative.
        choices: option -> the words that it may be.
        citation: BibTeX of the source.
        replaces_target: the loss has a target term of its own, so that it cannot be added to another such loss. A formula
            whose target term is not `cross_entropy` itself is always such a loss.
        shift_invariant: adding a constant to all logits changes neither value nor gradient.
        smoothing: `(classes, **parameters and options) -> s`, for a formula on `classes` that smooths the label,
            cross_entropy + s·(label − mean). With class weights it is then that of `torch.nn.functional.cross_entropy`.
        weighted_penalty: class weights scale the penalty too. A penalty that depends on the label and can be negative needs
            this: next to a weighted cross-entropy an unweighted one has no lower bound. Default: whether the formula
            takes `label`.
        needs: `{"votes": option}`: the switch that says whether `votes` are needed. Default: a formula that takes them
            always gets them.
        state: class of what the loss remembers, see `maxsup_hf.losses.online_label_smoothing`.
        **ends: default end of a scheduled parameter, as `alpha_end=0.2`; without one the default is constant.

    Raises:
        ValueError: the name is taken, or has a "+" or a ".".
        TypeError: an argument of the formula is not a row statistic, a parameter has no default, `smoothing` or `needs` do
            not fit the formula, or the formula, which is tried on a small batch, fails or returns something else.
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
                        f"argument {argument.name!r} of loss {name!r} must be a row statistic ({', '.join(NUMBERS)}) or, "
                        f"slower, one of {', '.join(INPUTS)}; put parameters behind a bare *"
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
                    f"{end!r} of loss {name!r} comes with {end.removesuffix('_end')!r}, and must not be a parameter of the "
                    f"formula; say its default to the decorator: @register_loss({name!r}, {end}={parameters[end]!r})"
                )
        defaults = parameters | {f"{parameter}_end": None for parameter in parameters}
        for end in ends:
            if end not in defaults or not end.endswith("_end"):
                raise TypeError(f"register_loss got {end!r}, which is not the end of a parameter of loss {name!r}")
        defaults |= ends
        if parameters:
            defaults |= {"schedule": "linear", "epochs": None, "warmup_ratio": None}
        for needed, option in (needs or {}).items():
            if needed != "votes" or needed not in arguments or options.get(option) != (True, False):
                raise TypeError(
                    f"needs of loss {name!r} must map 'votes', which the formula takes, to one of its switches, got "
                    f"{dict(needs or {})!r}"
                )
        if smoothing is not None and not {"cross_entropy", "label", "mean", "classes"} <= set(arguments):
            raise TypeError(f"smoothing of loss {name!r} needs a formula on cross_entropy, label, mean and classes")
        spec = LossSpec(
            name=name,
            formula=formula,
            weighted=formula,
            arguments=tuple(arguments),
            parameters=tuple(parameters),
            options=MappingProxyType(options),
            defaults=MappingProxyType(defaults | switches),
            bounds=MappingProxyType(dict(bounds or {})),
            citation=citation,
            replaces_target=replaces_target,
            shift_invariant=shift_invariant,
            smoothing=smoothing,
            weighted_penalty="label" in arguments and smoothing is None if weighted_penalty is None else weighted_penalty,
            votes=((needs or {}).get("votes"),) if "votes" in arguments else (),
            state=state,
        )
        spec.resolve({})
        spec = replace(spec, replaces_target=replaces_target or not _try(spec))
        if smoothing is not None or spec.weighted_penalty:
            spec = replace(spec, weighted=_combine([spec], spec.arguments, weighted=True), spread=_spread([spec]))
        _SPECS[name] = spec
        return formula

    return register


def _try(spec: LossSpec) -> bool:
    """Compute a formula once, as training does: a mistake in it shows when it is registered, not after hours.

    Returns:
        Whether its target term is the cross-entropy.

    Raises:
        TypeError: it fails, or returns something else than two terms for each row.
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
            f"loss {spec.name!r} fails on {rows} rows of {classes} classes: {error}. In training a parameter is a 0-dim "
            "tensor, whose value may move: write int(k) where k is a count"
        ) from error
    if not (isinstance(found, tuple) and len(found) == 2 and all(_is_of_rows(term, rows) for term in found)):
        got = [tuple(x.shape) if isinstance(x, Tensor) else x for x in (found if isinstance(found, tuple) else [found])]
        raise TypeError(
            f"loss {spec.name!r} must return two tensors of shape (N,), the target term and the penalty of each row, "
            f"not averaged; of {rows} rows it returned {', '.join(map(str, got))}"
        )
    return found[0] is have["cross_entropy"]


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
            f"unknown loss {name!r}{nearest(name, _SPECS)} (registered: {', '.join(list_losses())}; files with others are "
            f"named by the variable {OWN})"
        )
    return _SPECS[name]


def _add(parts: list[LossSpec]) -> LossSpec:
    """The sum of losses: one target term, and the penalty of each."""
    names = [spec.name for spec in parts]
    name = "+".join(names)
    if len(set(names)) < len(names):
        raise ValueError(f"loss {name!r} names a loss twice: raise its strength instead")
    rules = [spec.name for spec in parts if spec.replaces_target]
    if len(rules) > 1:
        raise ValueError(
            f"loss {name!r}: losses that both replace the cross-entropy term cannot be combined, and "
            f"{' and '.join(map(repr, rules))} do. Keep one of them; penalties on the logits can be added to it"
        )
    arguments = tuple(dict.fromkeys(("cross_entropy", *(argument for spec in parts for argument in spec.arguments))))

    formula = _combine(parts, arguments)
    formula.__doc__ = "; ".join(spec.description for spec in parts)

    def prefixed(items: str) -> dict[str, Any]:
        return {f"{spec.name}.{key}": value for spec in parts for key, value in getattr(spec, items).items()}

    return LossSpec(
        name=name,
        formula=formula,
        weighted=_combine(parts, arguments, weighted=True),
        arguments=arguments,
        parameters=tuple(f"{spec.name}.{parameter}" for spec in parts for parameter in spec.parameters),
        options=MappingProxyType(prefixed("options")),
        defaults=MappingProxyType(prefixed("defaults")),
        bounds=MappingProxyType(prefixed("bounds")),
        citation="\n\n".join(spec.citation for spec in parts if spec.citation),
        replaces_target=bool(rules),
        shift_invariant=all(spec.shift_invariant for spec in parts),
        spread=_spread(parts),
        weighted_penalty=any(spec.weighted_penalty for spec in parts),
        votes=tuple(option and f"{spec.name}.{option}" for spec in parts for option in spec.votes),
        parts=tuple(parts),
        penalties=MappingProxyType(
            {
                spec.name: (_penalty(spec, parts, arguments, False), _penalty(spec, parts, arguments, True))
                for spec in parts
                if not spec.replaces_target
            }
        ),
        state=next((spec.state for spec in parts if spec.state), None),
    )


def _combine(parts: Sequence[LossSpec], arguments: Sequence[str], weighted: bool = False) -> Formula:
    """The formula of a sum of losses, or of a single one: one target term, and everyone's penalty.

    Args:
        arguments: what the formula takes.
        weighted: make that of `LossSpec.weighted`.
    """

    def formula(*given: Any, **values: Any) -> tuple[Any, Any]:
        have = dict(zip(arguments, given, strict=True))
        target_term: Any = have.get("cross_entropy")
        scaled: list[Any] = []  # penalties that class weights scale
        penalties: list[Any] = []
        for spec in parts:
            own = _own(spec, values, parts)
            term, penalty = spec.formula(*(have[argument] for argument in spec.arguments), **own)
            if spec.replaces_target:
                target_term = term
            if weighted and spec.smoothing is not None:
                target_term = (1 - spec.smoothing(have["classes"], **own)) * term
            elif weighted and spec.weighted_penalty:
                scaled.append(penalty)
            else:
                penalties.append(penalty)
        penalty = reduce(operator.add, penalties) if penalties else target_term.new_zeros(())
        return reduce(operator.add, scaled, target_term), penalty

    return formula


def _penalty(spec: LossSpec, parts: Sequence[LossSpec], arguments: Sequence[str], weighted: bool) -> Formula:
    """The penalty of one loss of a sum, as what class weights scale and what they do not."""

    def penalty(*given: Any, **values: Any) -> tuple[Any, Any]:
        have = dict(zip(arguments, given, strict=True))
        _, found = spec.formula(*(have[argument] for argument in spec.arguments), **_own(spec, values, parts))
        nothing = found.new_zeros(())
        return (found, nothing) if weighted and spec.weighted_penalty else (nothing, found)

    return penalty


def _spread(parts: Sequence[LossSpec]) -> Formula | None:
    """`LossSpec.spread` of a sum of losses, or of a single one."""
    spec = next((spec for spec in parts if spec.smoothing is not None), None)
    if spec is None:
        return None

    def spread(cross_entropy: Any, classes: Any, **values: Any) -> tuple[Any, Any]:
        assert spec.smoothing is not None
        return spec.smoothing(classes, **_own(spec, values, parts)) * cross_entropy, cross_entropy.new_zeros(())

    return spread


def _own(spec: LossSpec, values: Mapping[str, Any], parts: Sequence[LossSpec]) -> dict[str, Any]:
    """The parameters and options of one summand."""
    prefix = f"{spec.name}." if len(parts) > 1 else ""
    return {key.removeprefix(prefix): value for key, value in values.items() if prefix_of(key) == prefix}
