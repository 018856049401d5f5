"""What counts as class labels in a batch."""

import torch

from maxsup_hf.counting import count_labels


def test_target_values_are_class_labels_where_they_are_integers():
    """PatchTSTForClassification takes its classes under this name, PatchTSTForRegression its values."""
    (count,) = count_labels({"past_values": torch.randn(3, 8, 1), "target_values": torch.tensor([0, 2, 1])}).values()
    assert count.rows == 3 and count.counted.tolist() == [3, 3]
    assert count_labels({"past_values": torch.randn(3, 8, 1), "target_values": torch.randn(3, 1)}) == {}
