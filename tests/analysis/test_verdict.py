"""The first line of a report: where the two losses differ, counted from the losses themselves."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from maxsup_hf import maxsup_loss
from maxsup_hf.analysis.intervals import binomial_interval
from maxsup_hf.analysis.measure import measure
from maxsup_hf.analysis.verdict import WrongRows, verdict, wrong_rows
from maxsup_hf.trainer.features import FeatureRows


def test_the_rows_and_the_distance_are_those_of_the_losses():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 4, generator=generator), torch.arange(200) % 4
    logits[torch.arange(200), labels] += 1.5
    found = wrong_rows(measure(lambda: iter([FeatureRows(logits, logits, labels)]), torch.eye(4)))
    alpha = 0.1
    smoothed = cross_entropy(logits, labels, label_smoothing=alpha, reduction="none")
    apart = maxsup_loss(logits, labels, alpha=alpha, reduction="none") - smoothed
    differing = apart.abs() > 1e-5
    assert (found.wrong, found.rows) == (int(differing.sum()), 200) and 20 < found.wrong < 180
    assert found.gap == pytest.approx(float(apart[differing].mean()) / alpha, rel=1e-4)
    assert (found.low, found.high) == binomial_interval(found.wrong, 200)


def wrong(count, rows=1000, gap=2.0):
    return WrongRows(count, rows, count / rows, *binomial_interval(count, rows), gap)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([0], "0.0 % (0.0 to 0.4 %) of the 1,000 rows of the test split. On so few rows"),
        ([3], "0.3 % (0.1 to 0.9 %) of the 1,000 rows of the test split. On so few rows"),
        ([10], "1.0 % (0.5 to 1.8 %) of the 1,000 rows of the test split. Whether that makes a difference is undecided"),
        ([60], "Whether that makes a difference is undecided"),  # 4.7 to 7.6 %
        ([200], "20.0 % (17.6 to 22.6 %) of the 1,000 rows of the test split. The two are different losses for you"),
        ([200, 3], "a 20.0 % (17.6 to 22.6 %), b 0.3 % (0.1 to 0.9 %) of the 1,000 rows of the test split. Whether that"),
        ([200, 300], "The two are different losses for you"),
    ],
)
def test_the_verdict(counts, words):
    line, more = verdict([wrong(count) for count in counts], ["a", "b"][: len(counts)], "test")
    assert line.startswith("Will MaxSup help?") and words in line
    assert ("α times" in more) == any(counts) and "--split train" in more
    for split, kind in (("train", "1,000 rows of the train split."), (None, "1,000 rows.")):
        line, more = verdict([wrong(5)], ["a"], split)
        assert kind in line and "--split" not in more
