"""Which classes are shown of many, and that nothing is lost in what is not shown."""

import numpy as np

from maxsup_hf.analysis import class_section
from maxsup_hf.analysis.class_section import grouped, most_confused


def test_the_classes_that_are_confused_most(monkeypatch):
    monkeypatch.setattr(class_section, "SHOWN", 3)
    counts = np.diag([50, 40, 30, 20, 10])
    counts[4, 1] = counts[1, 4] = 5
    counts[0, 2] = 1
    assert most_confused([counts]) == [0, 1, 4]
    counts[3, 2] = 2
    assert most_confused([counts, counts]) == [1, 2, 4]
    found = grouped(counts, [1, 2, 4])
    assert found.tolist() == [[40, 0, 5, 0], [0, 30, 0, 0], [5, 0, 10, 0], [0, 3, 0, 70]]
    assert found.sum() == counts.sum()
    assert (
        most_confused([counts[:3, :3]]) == [0, 1, 2]
        and grouped(counts[:3, :3], [0, 1, 2]).tolist() == counts[:3, :3].tolist()
    )
