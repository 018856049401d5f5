"""What counts as class labels in a batch."""

import torch

from maxsup_hf.trainer.normalization import class_targets


def test_target_values_are_class_labels_where_they_are_integers():
    """PatchTSTForClassification takes its classes under this name, PatchTSTForRegression its values."""
    found = class_targets({"past_values": torch.randn(3, 8, 1), "target_values": torch.tensor([0, 2, 1])})
    assert found["target_values"].tolist() == [0, 2, 1]
    assert class_targets({"past_values": torch.randn(3, 8, 1), "target_values": torch.randn(3, 1)}) == {}
