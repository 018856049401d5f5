"""Classes are matched by name, or refused."""

import pytest

from maxsup_hf.analysis.classes import match_classes


@pytest.mark.parametrize(
    ("wanted", "known", "places"),
    [
        (["cat", "dog"], ["cat", "dog"], [0, 1]),
        (["cat", "dog"], ["dog", "owl", "cat"], [2, 0]),
        (["polar_bear", "Cat"], ["cat", "Polar Bear"], [1, 0]),
        (["1", "0", "10"], [f"LABEL_{i}" for i in range(11)], [1, 0, 10]),
        (["LABEL_1", "LABEL_0"], ["0", "1"], [1, 0]),
        (["cat", "Cat"], ["Cat", "cat"], [1, 0]),  # equal names win over loose ones
    ],
)
def test_by_name(wanted, known, places):
    assert match_classes(wanted, known, "the data", "the model").tolist() == places


@pytest.mark.parametrize(
    ("wanted", "known", "message"),
    [
        (["cat", "owl"], ["cat", "dog"], "1 of the 2 classes of the data are not among the 2 of the model: 'owl' ag"),
        (["cat", "dog"], ["LABEL_0", "LABEL_1"], "2 of the 2 classes .*: 'cat', 'dog' against 'LABEL_0'"),
        (["cat", "cat"], ["cat", "dog"], "class names of the data must be distinct, but 'cat'"),
        (["cat"], ["dog", "dog"], "class names of the model must be distinct, but 'dog'"),
        (["CAT"], ["cat", "Cat"], "are not among"),  # which of the two?
        (["a_b", "A b"], ["a b", "c"], "are not among"),
        (["2"], ["LABEL_0", "LABEL_1"], "are not among"),
    ],
)  # fmt: skip
def test_or_refused(wanted, known, message):
    with pytest.raises(ValueError, match=message):
        match_classes(wanted, known, "the data", "the model")
