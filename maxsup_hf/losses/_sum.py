"""Sums of losses, such as "maxsup+z_loss": one target term, and the penalties of all of them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import Any

from maxsup_hf.losses._spec import Formula, LossSpec, prefix_of


def add(parts: Sequence[LossSpec]) -> LossSpec:
    """The description of a sum of losses, whose parameters are named `"maxsup.alpha"`.

    Raises:
        ValueError: a loss that occurs twice, or two losses that replace the cross-entropy term.
    """
    names = [spec.name for spec in parts]
    name = "+".join(names)
    if len(set(names)) < len(names):
        raise ValueError(f"loss {name!r} names the same loss twice: name it once, and raise its strength instead")
    replacing = [spec.name for spec in parts if spec.replaces_target]
    if len(replacing) > 1:
        raise ValueError(
            f"loss {name!r}: losses that both replace the cross-entropy term cannot be combined, and "
            f"{' and '.join(map(repr, replacing))} do. Keep one of them; penalties on the logits can be added to it"
        )
    # cross_entropy comes first: it is the target term unless a loss replaces it. dict.fromkeys drops repetitions.
    arguments = tuple(dict.fromkeys(("cross_entropy", *(argument for spec in parts for argument in spec.arguments))))
    formula = combine(parts, arguments)
    formula.__doc__ = "; ".join(spec.description for spec in parts)

    def prefixed(attribute: str) -> Mapping[str, Any]:
        merged = {f"{spec.name}.{key}": value for spec in parts for key, value in getattr(spec, attribute).items()}
        return MappingProxyType(merged)

    penalties = {}
    for spec in parts:
        if not spec.replaces_target:
            unweighted, weighted = (_penalty(spec, parts, arguments, by_weight) for by_weight in (False, True))
            penalties[spec.name] = (unweighted, weighted)
    return LossSpec(
        name=name,
        formula=formula,
        weighted=combine(parts, arguments, weighted=True),
        arguments=arguments,
        parameters=tuple(f"{spec.name}.{parameter}" for spec in parts for parameter in spec.parameters),
        options=prefixed("options"),
        defaults=prefixed("defaults"),
        bounds=prefixed("bounds"),
        citation="\n\n".join(spec.citation for spec in parts if spec.citation),
        replaces_target=bool(replacing),
        shift_invariant=all(spec.shift_invariant for spec in parts),
        smoothing_term=smoothing_term(parts),
        weighted_penalty=any(spec.weighted_penalty for spec in parts),
        votes=tuple(option and f"{spec.name}.{option}" for spec in parts for option in spec.votes),
        parts=tuple(parts),
        penalties=MappingProxyType(penalties),
        state=next((spec.state for spec in parts if spec.state), None),
    )


def combine(parts: Sequence[LossSpec], arguments: Sequence[str], weighted: bool = False) -> Formula:
    """The formula of a sum of losses (or of a single one): one target term, and the sum of all penalties.

    Args:
        arguments: the arguments of the formula.
        weighted: whether to make the formula for class weights, `LossSpec.weighted`.
    """

    def formula(*given: Any, **values: Any) -> tuple[Any, Any]:
        have = dict(zip(arguments, given, strict=True))
        target_term: Any = have.get("cross_entropy")
        weighted_penalties: list[Any] = []  # those that class weights scale
        penalties: list[Any] = []
        for spec in parts:
            own = _own(spec, values, parts)
            term, penalty = spec.formula(*(have[argument] for argument in spec.arguments), **own)
            if spec.replaces_target:
                target_term = term
            if weighted and spec.smoothing is not None:
                # torch's smoothing: (1 − s)·cross-entropy here, and the smoothed share in `smoothing_term`
                target_term = (1 - spec.smoothing(have["classes"], **own)) * term
            elif weighted and spec.weighted_penalty:
                weighted_penalties.append(penalty)
            else:
                penalties.append(penalty)
        penalty = reduce(operator.add, penalties) if penalties else target_term.new_zeros(())
        return reduce(operator.add, weighted_penalties, target_term), penalty

    return formula


def _penalty(spec: LossSpec, parts: Sequence[LossSpec], arguments: Sequence[str], weighted: bool) -> Formula:
    """The penalty of one loss of a sum, as the term that class weights scale and the term that they do not."""

    def penalty(*given: Any, **values: Any) -> tuple[Any, Any]:
        have = dict(zip(arguments, given, strict=True))
        _, found = spec.formula(*(have[argument] for argument in spec.arguments), **_own(spec, values, parts))
        nothing = found.new_zeros(())
        return (found, nothing) if weighted and spec.weighted_penalty else (nothing, found)

    return penalty


def smoothing_term(parts: Sequence[LossSpec]) -> Formula | None:
    """`LossSpec.smoothing_term` of a sum of losses, or of a single one."""
    spec = next((spec for spec in parts if spec.smoothing is not None), None)
    if spec is None or spec.smoothing is None:
        return None
    share = spec.smoothing

    def term(cross_entropy: Any, classes: Any, **values: Any) -> tuple[Any, Any]:
        return share(classes, **_own(spec, values, parts)) * cross_entropy, cross_entropy.new_zeros(())

    return term


def _own(spec: LossSpec, values: Mapping[str, Any], parts: Sequence[LossSpec]) -> dict[str, Any]:
    """The parameters and options of one loss of a sum, under the names that its formula uses."""
    prefix = f"{spec.name}." if len(parts) > 1 else ""
    return {key.removeprefix(prefix): value for key, value in values.items() if prefix_of(key) == prefix}
