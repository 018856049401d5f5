"""Which output of a model is which class of a data set: by name, or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def match_classes(wanted: Sequence[str], known: Sequence[str], of_wanted: str, of_known: str) -> NDArray[np.int64]:
    """The place of each name in a list of names.

    Names are the same where they are equal; or all of them where only case, spaces, underscores and hyphens differ; or, for
    a model that only numbers its classes (`LABEL_0`, …), where the other names are these numbers.

    Args:
        wanted: distinct names.
        known: distinct names.
        of_wanted, of_known: whose names they are, for messages.

    Returns:
        (len(wanted),) indices into `known`, all different.

    Raises:
        ValueError: a name that is not in `known`, or names that are not distinct.
    """
    for names, whose in ((wanted, of_wanted), (known, of_known)):
        if len(set(names)) != len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ValueError(f"the class names of {whose} must be distinct, but {twice!r} is there more than once")
    for form in (str, _loose, _number):
        places = {form(name): i for i, name in enumerate(known)}
        formed = [form(name) for name in wanted]
        if len(places) == len(known) and len(set(formed)) == len(formed) and places.keys() >= set(formed):
            return np.array([places[name] for name in formed], dtype=np.int64)
    missing = [name for name in wanted if name not in set(known)]
    raise ValueError(
        f"{len(missing)} of the {len(wanted)} classes of {of_wanted} are not among the {len(known)} of {of_known}: "
        f"{_some(missing)} against {_some(known)}. Rename the classes of one of them"
    )


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _number(name: str) -> str:
    return re.sub(r"^LABEL_(?=\d+$)", "", name)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (", …" if len(names) > most else "")
