"""chrF and perplexity against plain loops and by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxsup_hf.metrics import chrf, perplexity


def plain_chrf(predictions, references, order, beta):
    precisions, recalls = [], []
    for n in range(1, order + 1):
        both = found_all = wanted_all = 0
        for prediction, reference in zip(predictions, references, strict=True):
            found, wanted = ([t[i : i + n] for i in range(len(t) - n + 1)] for t in map(squeeze, (prediction, reference)))
            found_all, wanted_all = found_all + len(found), wanted_all + len(wanted)
            for gram in found:
                if gram in wanted:
                    wanted.remove(gram)
                    both += 1
        if found_all and wanted_all:
            precisions.append(both / found_all)
            recalls.append(both / wanted_all)
    if not sum(precisions):
        return 0.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + beta**2) * p * r / (beta**2 * p + r)


def squeeze(text):
    return "".join(text.split())


@given(
    pairs=st.lists(st.tuples(st.text("ab c", max_size=9), st.text("ab c", max_size=9)), min_size=1, max_size=5),
    order=st.integers(1, 6),
    beta=st.sampled_from([1.0, 2.0]),
)
def test_chrf_agrees_with_plain_loops(pairs, order, beta):
    predictions, references = zip(*pairs, strict=True)
    assert chrf(predictions, references, order, beta) == pytest.approx(plain_chrf(predictions, references, order, beta))


def test_chrf_by_hand():
    assert chrf(["ein Haus"], ["ein Haus"]) == chrf(["einHaus"], ["ein Haus"]) == 1.0
    assert chrf(["xyz"], ["abc"]) == chrf([""], ["abc"]) == 0.0
    # unigrams: 2 of 2 written, 2 of 4 wanted; recall counts four times
    assert chrf(["ab"], ["abcd"], order=1) == pytest.approx(5 * 0.5 / (4 + 0.5))


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_chrf_bad_input(predictions, references):
    with pytest.raises(ValueError, match="as many predictions as references"):
        chrf(predictions, references)


def test_perplexity():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))
