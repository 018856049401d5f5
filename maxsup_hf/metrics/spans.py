"""Entities marked by BIO tags, and precision, recall and F1 of predicted ones: all words and the kind must be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics.class_scores import ClassScores

Entity = tuple[str, int, int]

register_metrics(
    Metric("precision", "precision", higher_is_better=True, formula="right entities / predicted entities"),
    Metric("recall", "recall", higher_is_better=True, formula="right entities / entities of the references"),
    Metric(
        "f1", "F1", higher_is_better=True, rank=12,
        formula="2·right / (predicted + expected), of all entities; for answers of the words, averaged over the questions",
        paper="Tjong Kim Sang & De Meulder 2003, CoNLL; for answers Rajpurkar et al. 2016, arXiv 1606.05250",
        meaning="balance of precision and recall: 1 is perfect",
    ),
)  # fmt: skip


def is_bio(names: Iterable[str]) -> bool:
    """Whether tags mark entities: all are `O`, `B-…` or `I-…`, and at least one is `B-…`."""
    names = list(names)
    return all(name == "O" or name[:2] in ("B-", "I-") for name in names) and any(name[:2] == "B-" for name in names)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence, as (kind, first word, one past the last word).

    As in the CoNLL evaluation, an `I-` that follows a different kind, or `O`, begins an entity as a `B-` does.

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

    What is undefined, such as the precision of no predictions, is 0.

    Args:
        predictions: BIO tags of each sentence.
        references: the true ones, of the same lengths.

    Raises:
        TypeError: a text in place of a sentence's tags.
        ValueError: different lengths.
    """
    right, predicted, expected = _counts(predictions, references)
    scores = _scores("", right.total(), predicted.total(), expected.total())
    return {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}


def per_entity(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], kinds: Sequence[str]
) -> list[ClassScores]:
    """Precision, recall, F1 and support of each kind of entity, counting complete entities as `entity_f1` does.

    >>> from maxsup_hf.metrics import per_entity
    >>> per_entity([["B-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "B-LOC"]], ["LOC", "PER"])[0]
    ClassScores(name='LOC', support=1, precision=1.0, recall=1.0, f1=1.0)

    Args:
        predictions, references: as in `entity_f1`.
        kinds: of the entities, such as `PER`.

    Raises:
        TypeError: a text in place of a sentence's tags.
        ValueError: different lengths.
    """
    right, predicted, expected = _counts(predictions, references)
    return [_scores(kind, right[kind], predicted[kind], expected[kind]) for kind in kinds]


def _counts(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """The entities of each kind: right, predicted and expected ones."""
    if any(isinstance(tags, str) for tags in (*predictions, *references)):  # whose letters would be taken for tags
        raise TypeError("predictions and references must hold a list of tags for each sentence, got a text")
    if [len(tags) for tags in predictions] != [len(tags) for tags in references]:
        raise ValueError("predictions and references must have the same number of sentences and of tags in each")
    right, predicted, expected = Counter[str](), Counter[str](), Counter[str]()
    for guess, truth in zip(map(entities, predictions), map(entities, references), strict=True):
        for counts, found in ((right, guess & truth), (predicted, guess), (expected, truth)):
            counts.update(kind for kind, _, _ in found)
    return right, predicted, expected


def _scores(kind: str, right: int, predicted: int, expected: int) -> ClassScores:
    return ClassScores(
        kind,
        expected,
        right / predicted if predicted else 0.0,
        right / expected if expected else 0.0,
        2 * right / (predicted + expected) if predicted + expected else 0.0,
    )
