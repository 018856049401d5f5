"""Search in the autograd graph behind a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def nodes_behind(loss: Tensor, wanted: Sequence[Any]) -> set[Any]:
    """Those of the wanted graph nodes that a loss depends on.

    A training loss is computed from its cross-entropies in a few operations, so the search is breadth first and ends as soon
    as all are found. It visits the whole graph only if one of them is missing.
    """
    targets = set(wanted)
    found: set[Any] = set()
    seen: set[Any] = set()
    level: list[Any] = [loss.grad_fn]
    while level and found != targets:
        following: list[Any] = []
        for node in level:
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in targets:
                found.add(node)
            following += [child for child, _ in node.next_functions]
        level = following
    return found
