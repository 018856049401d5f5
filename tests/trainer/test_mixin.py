"""MaxSupMixin before Trainers with constructors of all kinds."""

import pytest
import torch
from torch import nn
from transformers import Trainer

from maxsup_hf import MaxSupMixin, MaxSupTrainer
from tests import tiny
from tests.trainer.trainings import arguments, logs, outputs_of

WEIGHTS = torch.tensor([1.0, 20.0, 1.0, 1.0, 0.1])


def test_the_mixin_behind_a_trainer_is_refused():
    with pytest.raises(TypeError, match="MaxSupMixin must come before WeightsFirst among the bases of Late"):
        type("Late", (WeightsFirst, MaxSupMixin), {})


class WeightsFirst(Trainer):
    def __init__(self, class_weights=None, **kw):
        super().__init__(**kw)
        self.class_weights = class_weights

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, labels = outputs_of(model, inputs)
        loss = nn.CrossEntropyLoss(weight=self.class_weights)(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class AnyPositional(WeightsFirst):
    def __init__(self, *args, class_weights=None, **kw):
        Trainer.__init__(self, *args, **kw)
        self.class_weights = class_weights


class KeywordOnly(WeightsFirst):
    def __init__(self, *, model, args, class_weights=None, **kw):
        Trainer.__init__(self, model=model, args=args, **kw)
        self.class_weights = class_weights


class WeightsBetween(WeightsFirst):
    def __init__(self, model, class_weights, args, **kw):
        Trainer.__init__(self, model, args, **kw)
        self.class_weights = class_weights


@pytest.mark.parametrize("base", [WeightsFirst, AnyPositional, KeywordOnly, WeightsBetween])
def test_the_mixin_passes_on_what_a_constructor_takes(base, tmp_path):
    mixed = type("Mixed", (MaxSupMixin, base), {})
    data = tiny.rows(tiny.batch("bert"))
    trainer = mixed(model=tiny.bert(), args=arguments(tmp_path), class_weights=WEIGHTS, train_dataset=data)
    trainer.train()
    assert trainer.class_weights is WEIGHTS and torch.equal(trainer.trained_class_weights, WEIGHTS)
    assert all("train_penalty" in entry for entry in logs(trainer))


def test_arguments_without_a_loss_are_refused_wherever_they_stand(tmp_path):
    from transformers import TrainingArguments

    class Mixed(MaxSupMixin, WeightsBetween):
        pass

    with pytest.raises(TypeError, match="args must have the fields loss and loss_kwargs, got TrainingArguments"):
        Mixed(tiny.bert(), None, TrainingArguments(str(tmp_path), use_cpu=True))
    assert MaxSupTrainer(tiny.bert()).args.loss == "maxsup"
