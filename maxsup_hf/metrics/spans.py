"""Entities that BIO tags mark, and how well predicted ones agree with them: every word and the kind must be right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]


def is_bio(names: Iterable[str]) -> bool:
    """Whether these tags mark entities: all are `O`, `B-…` or `I-…`, and some `B-…`."""
    names = list(names)
    return all(name == "O" or name[:2] in ("B-", "I-") for name in names) and any(name[:2] == "B-" for name in names)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence, as (kind, first, behind the last).

    As in the CoNLL evaluation, an `I-` that follows another kind, or nothing, begins an entity like a `B-`.

    Args:
        tags: `O`, `B-kind` or `I-kind`, one for each word.
    """
    found = set()
    kind, first = "", 0
    for i, tag in enumerate((*tags, "O")):
        begins = tag[:2] == "B-" or (tag[:2] == "I-" and tag[2:] != kind)
        if kind and (begins or tag == "O"):
            found.add((kind, first, i))
        if begins or tag == "O":
            kind, first = tag[2:], i
    return found


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` of the entities of all sentences together (micro-averaged), in [0, 1].

    What is not defined, as the precision where nothing was predicted, is 0.

    Args:
        predictions: BIO tags of each sentence.
        references: the right ones, of the same lengths.

    Raises:
        ValueError: other lengths.
    """
    if [len(tags) for tags in predictions] != [len(tags) for tags in references]:
        raise ValueError("predictions and references must have the same number of sentences and of tags in each")
    right = predicted = expected = 0
    for guess, truth in zip(map(entities, predictions), map(entities, references), strict=True):
        right, predicted, expected = right + len(guess & truth), predicted + len(guess), expected + len(truth)
    return {
        "precision": right / predicted if predicted else 0.0,
        "recall": right / expected if expected else 0.0,
        "f1": 2 * right / (predicted + expected) if predicted + expected else 0.0,
    }
