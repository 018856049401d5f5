"""A user's own compute_loss, training_step or get_batch_samples: the requested loss is trained, or training ends at once."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback

from maxsup_hf import MaxSupMixin, MaxSupTrainer
from tests import tiny
from tests.trainer.trainings import arguments, logs, outputs_of

ORIGINAL = F.cross_entropy
ALPHA = {"alpha": 0.1, "alpha_end": None}


class Gradient(TrainerCallback):
    """The gradient that the optimizer gets in the first step."""

    found = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.found is None:
            self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class ByFunction(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, labels = outputs_of(model, inputs)
        loss = F.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class ByImportedName(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        loss = cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class ByHeldCriterion(MaxSupTrainer):
    criterion = nn.CrossEntropyLoss()

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        loss = self.criterion(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class BySum(MaxSupTrainer):
    """As transformers' documentation has it, with the total already divided by what the whole batch counts."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, labels = outputs_of(model, inputs)
        loss = F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class ByRows(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        loss = F.cross_entropy(outputs.logits, labels, reduction="none").mean()
        return (loss, outputs) if return_outputs else loss


class BySumOverRows(MaxSupTrainer):
    """Divided by the size of its micro-batch, which is the same in all of them."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        loss = F.cross_entropy(outputs.logits, labels, reduction="sum") / len(labels)
        return (loss, outputs) if return_outputs else loss


class SumOfTheBase(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, labels = outputs_of(model, inputs)
        loss = F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class BySumOfTheBase(MaxSupMixin, SumOfTheBase):
    pass


class OwnStep(MaxSupTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        outputs, labels = outputs_of(model, self._prepare_inputs(inputs))
        loss = F.cross_entropy(outputs.logits, labels) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class OwnSamples(MaxSupTrainer):
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [next(epoch_iterator) for _ in range(num_batches)], None


OWN = [ByFunction, ByImportedName, ByHeldCriterion, BySum, ByRows, BySumOverRows, BySumOfTheBase, OwnStep, OwnSamples]


@pytest.mark.parametrize("sizes", [(8, 1), (2, 4)], ids=["8x1", "2x4"])
@pytest.mark.parametrize("cls", OWN)
def test_what_a_derived_class_overrides_is_still_this_loss(cls, sizes, tmp_path):
    model, data, found = tiny.bert(), tiny.batch("bert"), Gradient()
    args = arguments(
        tmp_path, loss_kwargs=ALPHA, max_steps=1, per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1],
        learning_rate=0.0,
    )  # fmt: skip
    trainer = cls(model, args, train_dataset=tiny.rows(data), eval_dataset=tiny.rows(data), callbacks=[found])
    trainer.train()
    model.train()
    logits = model(data["input_ids"], data["attention_mask"]).logits
    plain = ORIGINAL(logits, data["labels"])
    expected = plain + 0.1 * (logits.amax(-1) - logits.mean(-1)).mean()
    model.zero_grad()
    expected.backward()
    assert tiny.relative_error(found.found, {name: p.grad for name, p in model.named_parameters()}) <= 1e-6
    assert logs(trainer)[0]["train_cross_entropy"] == pytest.approx(plain.item(), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.item(), rel=1e-5)
    assert trainer.trained_loss.spec.name == "maxsup" and F.cross_entropy is ORIGINAL
    trainer.create_model_card()
    assert json.loads((tmp_path / "run.json").read_text())["loss"]["name"] == "maxsup"


class OwnFormula(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        return -outputs.logits.log_softmax(-1).gather(1, labels[:, None]).mean()


class OwnFormulaBesideTheHeads(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return -model(**inputs).logits.log_softmax(-1).gather(1, inputs["labels"][:, None]).mean()


class HeadsLossTimesZero(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return -outputs.logits.log_softmax(-1).gather(1, inputs["labels"][:, None]).mean() + 0.0 * outputs.loss


class OnlyLogged(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        with torch.no_grad():
            self.seen = F.cross_entropy(outputs.logits, labels)
        return -outputs.logits.log_softmax(-1).gather(1, labels[:, None]).mean()


class OnlyLoggedDetached(MaxSupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        self.seen = F.cross_entropy(outputs.logits.detach(), labels)
        return -outputs.logits.log_softmax(-1).gather(1, labels[:, None]).mean()


OTHERS = [OwnFormula, OwnFormulaBesideTheHeads, HeadsLossTimesZero, OnlyLogged, OnlyLoggedDetached]


@pytest.mark.parametrize("cls", OTHERS)
def test_a_step_without_the_loss_ends_training_before_the_weights_change(cls, tmp_path):
    trainer = cls(tiny.bert(), arguments(tmp_path), train_dataset=tiny.rows(tiny.batch("bert")))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"loss='maxsup' was asked for, but .*{cls.__name__}.compute_loss"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert trainer.trained_loss is None and F.cross_entropy is ORIGINAL
    assert not {"training_step", "get_batch_samples"} & vars(trainer).keys()


def test_before_a_backward_that_updates_the_weights_the_graph_tells(tmp_path):
    """DeepSpeed and LOMO: the check looks at what the loss depends on, not at the gradients that arrived."""
    for cls in (OwnFormulaBesideTheHeads, ByFunction):
        trainer = cls(tiny.bert(), arguments(tmp_path), train_dataset=tiny.rows(tiny.batch("bert")))
        trainer.is_deepspeed_enabled, backward, steps = True, trainer.accelerator.backward, []
        trainer.accelerator.backward = lambda loss, backward=backward, steps=steps, **kwargs: steps.append(backward(loss))
        training, trainer.current_gradient_accumulation_steps = trainer._begin_training(), 1
        if cls is ByFunction:
            trainer.training_step(trainer.model, tiny.batch("bert"))
            assert len(steps) == 1 and training.loss is trainer.trained_loss
        else:
            with pytest.raises(ValueError, match="does not depend on the cross-entropy"):
                trainer.training_step(trainer.model, tiny.batch("bert"))
            assert not steps


def test_a_criterion_that_is_kept_is_the_original_outside_of_a_step(tmp_path):
    class Keeps(MaxSupTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            outputs, labels = outputs_of(model, inputs)
            if not hasattr(self, "kept"):
                self.kept, self.function = nn.CrossEntropyLoss(), F.cross_entropy
            loss = self.function(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss

    trainer = Keeps(tiny.bert(), arguments(tmp_path), train_dataset=tiny.rows(tiny.batch("bert")))
    trainer.train()
    z, labels = torch.randn(3, 5), torch.tensor([0, 1, 2])
    assert torch.equal(trainer.function(z, labels), ORIGINAL(z, labels))
    assert torch.equal(trainer.kept(z, labels), ORIGINAL(z, labels))


def test_an_own_loss_of_a_compiled_model_is_warned_of(tmp_path):
    args = arguments(tmp_path, torch_compile=True, torch_compile_backend="eager", max_steps=1)
    trainer = OwnFormulaBesideTheHeads(tiny.bert(), args, train_dataset=tiny.rows(tiny.batch("bert")))
    with pytest.warns(UserWarning, match="OwnFormulaBesideTheHeads.compute_loss computes its own loss of a compiled model"):
        trainer.train()


def test_a_training_step_that_is_replaced_while_a_training_runs(tmp_path):
    class Replaces(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            trainer.training_step = lambda model, inputs, *args: Trainer.training_step(trainer, model, inputs, *args)

    trainer = MaxSupTrainer(
        tiny.bert(), arguments(tmp_path), train_dataset=tiny.rows(tiny.batch("bert")), callbacks=[Replaces()]
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="the gradient of step 1 was not computed by the Trainer's training_step"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_a_wrapper_of_the_function_stays(tmp_path, monkeypatch):
    def wrapper(*args, **kwargs):
        return ORIGINAL(*args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", wrapper)
    MaxSupTrainer(tiny.bert(), arguments(tmp_path), train_dataset=tiny.rows(tiny.batch("bert"))).train()
    assert F.cross_entropy is wrapper
