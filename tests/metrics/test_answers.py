"""Exact match and F1 of answers, against a reference implementation and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxsup_hf.metrics import answer_f1, exact_match, normalize_answer

WORDS = st.lists(st.sampled_from(["the", "cat", "dog", "a", "Cat", "dog.", "an"]), max_size=5).map(" ".join)


def plain_words(text):
    kept = "".join(character.lower() for character in text if character.isalnum() or character.isspace())
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def plain_f1(guess, truth):
    if not guess or not truth:
        return float(guess == truth)
    left, shared = list(truth), 0
    for word in guess:
        if word in left:
            left.remove(word)
            shared += 1
    precision, recall = shared / len(guess), shared / len(truth)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_agree_with_the_reference_implementation(prediction, answers):
    guess = plain_words(prediction)
    assert exact_match(prediction, answers) == max(guess == plain_words(answer) for answer in answers)
    assert answer_f1(prediction, answers) == pytest.approx(max(plain_f1(guess, plain_words(answer)) for answer in answers))


def test_by_hand():
    assert normalize_answer(" The  Eiffel-Tower, an icon! ") == "eiffeltower icon"
    assert exact_match("the Cat.", ["dog", "cat"]) == 1 and exact_match("cats", ["cat"]) == 0
    assert answer_f1("big black cat", ["the black cat"]) == pytest.approx(0.8)
    assert answer_f1("x", ["y"]) == 0


def test_no_answer():
    assert exact_match("", []) == answer_f1("", []) == 1
    assert exact_match("x", []) == answer_f1("x", []) == 0
    assert answer_f1("", ["x"]) == 0
