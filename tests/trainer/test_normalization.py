"""What counts as class labels in a batch, and what happens where a cross-entropy counts something else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertForTokenClassification

from maxsup_hf import MaxSupTrainer
from maxsup_hf.trainer.normalization import class_targets
from tests import tiny
from tests.trainer.trainings import arguments, logs, outputs_of


def test_target_values_are_class_labels_where_they_are_integers():
    """PatchTSTForClassification takes its classes under this name, PatchTSTForRegression its values."""
    found = class_targets({"past_values": torch.randn(3, 8, 1), "target_values": torch.tensor([0, 2, 1])})
    assert found["target_values"].tolist() == [0, 2, 1]
    assert class_targets({"past_values": torch.randn(3, 8, 1), "target_values": torch.randn(3, 1)}) == {}


def test_label_names(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.EmbeddingBag(40, 8), nn.Linear(8, 5)

        def forward(self, input_ids, target=None):
            logits = self.out(self.embed(input_ids))
            return {"logits": logits} if target is None else {"loss": F.cross_entropy(logits, target), "logits": logits}

    batch = tiny.batch("bert")
    data = tiny.rows({"input_ids": batch["input_ids"], "target": batch["labels"]})
    args = arguments(tmp_path, label_names=["target"], gradient_accumulation_steps=2, per_device_train_batch_size=2)
    trainer = MaxSupTrainer(Net(), args, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert all("train_penalty" in entry for entry in logs(trainer)) and "eval_loss" in trainer.evaluate()


class MeanOfTokens(MaxSupTrainer):
    """A mean of its own over the tokens of its micro-batch, of which each has another number."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        rows = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction=self.reduction)
        return rows.sum() / (labels != -100).sum()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_sum_that_is_divided_by_its_own_count_ends_training(reduction, tmp_path):
    data = tiny.batch("bert")
    data["labels"] = torch.randint(5, (8, 7)).masked_fill(torch.arange(7) < torch.arange(8)[:, None] % 6, -100)
    model = BertForTokenClassification(tiny.bert().config)
    kwargs = {"train_dataset": tiny.rows(data)}
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = MeanOfTokens(model, arguments(tmp_path, **cut), **kwargs)
    trainer.reduction = reduction
    with pytest.raises(ValueError, match=r"is multiplied by .* in one micro-batch and by .* in others"):
        trainer.train()


def test_labels_of_several_tasks(tmp_path):
    """Each micro-batch has those of one task."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.EmbeddingBag(40, 8), nn.Linear(8, 5)

        def forward(self, input_ids, labels_a=None, labels_b=None):
            logits = self.out(self.embed(input_ids))
            return {"loss": F.cross_entropy(logits, labels_b if labels_a is None else labels_a), "logits": logits}

    ids = tiny.batch("bert")["input_ids"]
    rows = [{"input_ids": x, "labels_b" if i // 2 % 2 else "labels_a": torch.tensor(i % 5)} for i, x in enumerate(ids)]
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, remove_unused_columns=False)
    MaxSupTrainer(Net(), args, train_dataset=rows).train()


class DropsLabels(MaxSupTrainer):
    """Leaves the first row of each micro-batch out of its loss, unseen by whoever looks at the labels."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        loss = F.cross_entropy(outputs.logits[1:], labels[1:])
        return (loss, outputs) if return_outputs else loss


def test_a_count_that_does_not_come_out_ends_training(tmp_path):
    data = tiny.rows(tiny.batch("bert"))
    trainer = DropsLabels(tiny.bert(), arguments(tmp_path, gradient_accumulation_steps=2), train_dataset=data)
    with pytest.raises(ValueError, match="counted 6 over the 2 micro-batches of this rank, but was divided by 8"):
        trainer.train()
    DropsLabels(tiny.bert(), arguments(tmp_path), train_dataset=data).train()  # one micro-batch: its own mean
