"""Entities and their F1 against a reference implementation that goes from word to word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxsup_hf.metrics import entities, entity_f1, is_bio, per_entity

TAGS = st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])


def plain_entities(tags):
    found, i = set(), 0
    while i < len(tags):
        if tags[i] == "O":
            i += 1
            continue
        kind, end = tags[i][2:], i + 1
        while end < len(tags) and tags[end] == f"I-{kind}":
            end += 1
        found.add((kind, i, end))
        i = end
    return found


@given(st.lists(TAGS, max_size=12))
def test_entities_agree_with_the_reference_implementation(tags):
    assert entities(tags) == plain_entities(tags)


@given(st.lists(st.lists(st.tuples(TAGS, TAGS), max_size=8), max_size=5))
def test_f1_agrees_with_the_reference_implementation(pairs):
    guesses, truths = ([[pair[i] for pair in row] for row in pairs] for i in range(2))
    found = entity_f1(guesses, truths)
    guessed = {(i, *entity) for i, row in enumerate(guesses) for entity in plain_entities(row)}
    expected = {(i, *entity) for i, row in enumerate(truths) for entity in plain_entities(row)}
    precision = len(guessed & expected) / len(guessed) if guessed else 0
    recall = len(guessed & expected) / len(expected) if expected else 0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert found == pytest.approx({"precision": precision, "recall": recall, "f1": f1})
    for kind, scores in zip("xy", per_entity(guesses, truths, "xy"), strict=True):
        only = [[[tag if tag[2:] == kind else "O" for tag in row] for row in rows] for rows in (guesses, truths)]
        assert entity_f1(*only) == {name: getattr(scores, name) for name in ("precision", "recall", "f1")}
        assert scores.support == sum(entity[1] == kind for entity in expected)


def test_agrees_with_seqeval():
    """The figures are those of seqeval 1.2.2, `classification_report`."""
    truths = ["B-PER I-PER O B-LOC", "B-ORG I-ORG I-ORG O B-PER", "I-LOC I-LOC O B-LOC B-LOC", "B-PER I-LOC"]
    guesses = ["B-PER I-PER O B-ORG", "B-ORG I-ORG O O B-PER", "B-LOC I-LOC O B-LOC I-LOC", "B-PER B-LOC"]
    rows = [[row.split() for row in each] for each in (guesses, truths)]
    assert per_entity(*rows, ["LOC", "ORG", "PER", "MISC"]) == [
        ("LOC", 5, 2 / 3, 2 / 5, 1 / 2), ("ORG", 1, 0, 0, 0), ("PER", 3, 1, 1, 1), ("MISC", 0, 0, 0, 0),
    ]  # fmt: skip
    assert entity_f1(*rows) == pytest.approx({"precision": 0.625, "recall": 5 / 9, "f1": 10 / 17})


def test_by_hand():
    truth = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    assert entities(truth) == {("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 5)}
    assert entities(["O", "I-PER", "I-LOC", "I-LOC"]) == {("PER", 1, 2), ("LOC", 2, 4)}
    found = entity_f1([["B-PER", "O", "O", "B-LOC", "B-LOC"]], [truth])
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert entity_f1([], []) == {"precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["O", "B-x"], True), (["B-x", "I-x"], True), (["O"], False), (["I-x", "O"], False), (["O", "B-x", "NOUN"], False)],
)
def test_is_bio(names, expected):
    assert is_bio(names) is expected


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="same number"):
        entity_f1([["O"]], [["O", "O"]])
