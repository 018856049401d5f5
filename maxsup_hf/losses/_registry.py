"""The registry: `register_loss` describes a loss once, and `get_spec` finds it by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from maxsup_hf.losses._signature import check_needs, check_smoothing, default_values, read_signature, try_formula
from maxsup_hf.losses._spec import Formula, LossSpec, nearest
from maxsup_hf.losses._sum import add, combine, smoothing_term
from maxsup_hf.losses._user_files import VARIABLE, load_user_files

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
    """Decorator that makes a formula available to `create_loss`, the `--loss` flag and everything built on them.

    The positional arguments of the formula name the row statistics it needs (`maxsup_hf.ops.row_stats.STATISTICS`), each of
    shape (N,). Its keyword-only arguments are parameters (with a numeric default) and options (with a string or boolean
    default). During training a parameter is a 0-dim tensor, because a schedule may change its value: write `int(k)` for a
    count. The formula returns two (N,) tensors: the target term, which class weights scale, and the penalty, which they do
    not (but see `weighted_penalty`). The loss is their sum.

    If row statistics are not enough, a formula may also take `logits` (N, K), float32 or float64, −inf where a class is
    masked and 0 in ignored rows; `labels` (N,), class indices (soft labels are then rejected); `target`, class indices or
    probabilities; `votes` (N, P), see `Loss.forward`; and `state`. Such a loss has no fast kernel.

    Args:
        name: a new name, without "+" and ".".
        bounds: parameter -> (lowest, highest) allowed value; by default a parameter must be finite and not negative.
        choices: string option -> its allowed values.
        citation: BibTeX of the source.
        replaces_target: whether the loss replaces the cross-entropy term, so that it cannot be added to another such loss.
            It always does if the formula's target term is not `cross_entropy` itself.
        shift_invariant: whether adding a constant to all logits changes neither value nor gradient.
        smoothing: `(classes, **parameters and options) -> s`, for a formula on `classes` that smooths the label,
            cross_entropy + s·(label − mean). With class weights, smoothing is then that of
            `torch.nn.functional.cross_entropy`.
        weighted_penalty: whether class weights also scale the penalty. They must if it depends on the label and can be
            negative: an unweighted one would have no lower bound next to a weighted cross-entropy. Default: whether the
            formula takes `label`.
        needs: `{"votes": option}`: the boolean option that decides whether `votes` are needed. By default a formula that
            takes `votes` always needs them.
        state: class of the state that the loss keeps between batches, see `maxsup_hf.losses.online_label_smoothing`.
        **ends: default end value of a scheduled parameter, as in `alpha_end=0.2`; by default it stays constant.

    Raises:
        ValueError: the name is taken, or contains "+" or ".".
        TypeError: an argument of the formula is not a row statistic; a parameter has no default; `smoothing` or `needs` does
            not fit the formula; or the formula fails on a small batch, on which it is tried, or returns the wrong shapes.

    Example:
        >>> from maxsup_hf import list_losses, register_loss
        >>> @register_loss("top_penalty")
        ... def top_penalty(cross_entropy, top, *, alpha=0.1):
        ...     return cross_entropy, alpha * top
        >>> print("top_penalty" in list_losses())
        True
    """

    def register(formula: Formula) -> Formula:
        _check_name(name, formula)
        signature = read_signature(name, formula, choices or {})
        if needs:
            check_needs(name, needs, signature)
        if smoothing is not None:
            check_smoothing(name, signature)
        scales_penalty = weighted_penalty
        if scales_penalty is None:
            scales_penalty = "label" in signature.arguments and smoothing is None
        spec = LossSpec(
            name=name,
            formula=formula,
            weighted=formula,
            arguments=signature.arguments,
            parameters=tuple(signature.parameters),
            options=MappingProxyType(signature.options),
            defaults=MappingProxyType(default_values(name, signature, ends)),
            bounds=MappingProxyType(dict(bounds or {})),
            citation=citation,
            replaces_target=replaces_target,
            shift_invariant=shift_invariant,
            smoothing=smoothing,
            weighted_penalty=scales_penalty,
            votes=((needs or {}).get("votes"),) if "votes" in signature.arguments else (),
            state=state,
        )
        spec.resolve({})
        if not try_formula(spec):
            spec = replace(spec, replaces_target=True)
        if smoothing is not None or scales_penalty:
            weighted = combine([spec], spec.arguments, weighted=True)
            spec = replace(spec, weighted=weighted, smoothing_term=smoothing_term([spec]))
        _SPECS[name] = spec
        return formula

    return register


def _check_name(name: str, formula: Formula) -> None:
    if name in _SPECS and _SPECS[name].formula.__module__ != formula.__module__:  # a module may be imported again
        raise ValueError(
            f"loss name {name!r} is already registered (by {_SPECS[name].formula.__module__}): choose another name"
        )
    if "+" in name or "." in name:
        raise ValueError(f"name must not contain '+' or '.', which are used for sums of losses, got {name!r}")


def list_losses() -> list[str]:
    """Names of all registered losses, sorted.

    Losses in the files listed in the environment variable MAXSUP_HF_LOSSES are included.

    Example:
        >>> from maxsup_hf import list_losses
        >>> print(", ".join(list_losses()[:3]))
        confidence_penalty, cross_entropy, focal
    """
    load_user_files()
    return sorted(_SPECS)


def get_spec(name: str) -> LossSpec:
    """The description of a registered loss, or of a sum of losses such as `"maxsup+z_loss"`.

    Raises:
        TypeError: `name` is not a string.
        ValueError: an unknown name (the message suggests the closest), or losses that cannot be added.
    """
    if not isinstance(name, str):
        raise TypeError(f"loss must be a name, one of {', '.join(list_losses())}, got {type(name).__name__} {name!r}")
    if "+" in name:
        return add([get_spec(part.strip()) for part in name.split("+")])
    load_user_files()
    if name not in _SPECS:
        raise ValueError(
            f"unknown loss {name!r}{nearest(name, _SPECS)} (registered: {', '.join(list_losses())}; to add your own, list "
            f"the files that register them in the environment variable {VARIABLE})"
        )
    return _SPECS[name]
