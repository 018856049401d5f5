"""Match the outputs of a model to the classes of a data set by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maxsup_hf.output.messages import listed


def match_classes(wanted: Sequence[str], known: Sequence[str], of_wanted: str, of_known: str) -> NDArray[np.int64]:
    """The index of each name in a list of names.

    The first of these rules by which all names match is used: names are equal; they differ only in case, spaces, underscores
    and hyphens; the model only numbers its classes (`LABEL_0`, …), and the other names are these numbers.

    Args:
        wanted: distinct names.
        known: distinct names.
        of_wanted, of_known: whose names they are, for error messages.

    Returns:
        (len(wanted),) indices into `known`, all distinct.

    Raises:
        ValueError: a name that is not in `known`, or names that are not distinct.
    """
    for names, whose in ((wanted, of_wanted), (known, of_known)):
        if len(set(names)) != len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ValueError(f"the class names of {whose} must be distinct, but {twice!r} occurs more than once")
    for normalize in (str, _without_case_and_separators, _without_label_prefix):
        places = {normalize(name): i for i, name in enumerate(known)}
        normalized = [normalize(name) for name in wanted]
        is_distinct = len(places) == len(known) and len(set(normalized)) == len(normalized)
        if is_distinct and places.keys() >= set(normalized):
            return np.array([places[name] for name in normalized], dtype=np.int64)
    missing = [name for name in wanted if name not in set(known)]
    raise ValueError(
        f"{len(missing)} of the {len(wanted)} classes of {of_wanted} are not among the {len(known)} of {of_known}: "
        f"{_quoted(missing)} against {_quoted(known)}. Rename the classes of one of them"
    )


def _without_case_and_separators(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _without_label_prefix(name: str) -> str:
    return re.sub(r"^LABEL_(?=\d+$)", "", name)


def _quoted(names: Sequence[str]) -> str:
    return listed([repr(name) for name in names])
