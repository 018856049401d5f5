"""Whatever the code around the Trainer looks like: the loss asked for is trained, or training ends before it begins."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback

from maxsup_hf import MaxSupMixin, MaxSupTrainer, MaxSupTrainingArguments, register_loss
from maxsup_hf.losses import _registry
from tests import tiny

ORIGINAL = F.cross_entropy
WEIGHTS = torch.tensor([1.0, 20.0, 1.0, 1.0, 0.1])
ALPHA = {"alpha": 0.1, "alpha_end": None}


def arguments(tmp_path, **kwargs):
    defaults = dict(
        use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no", per_device_train_batch_size=4, max_steps=2,
        train_sampling_strategy="sequential", max_grad_norm=0.0, report_to=[],
    )  # fmt: skip
    return MaxSupTrainingArguments(str(tmp_path), **defaults | kwargs)


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class Gradient(TrainerCallback):
    """The gradient that the optimizer gets in the first step."""

    found = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.found is None:
            self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- the user's own compute_loss and training_step ----


def outputs_of(model, inputs):
    labels = inputs.pop("labels")
    return model(**inputs), labels


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


# ---- the mixin over constructors of all kinds ----


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


# ---- several trainings by one Trainer ----


def search(tmp_path, space, trials, **kwargs):
    ended = []

    class Ends(TrainerCallback):
        def on_train_end(self, args, state, control, **kw):
            last = [entry for entry in state.log_history if "loss" in entry][-1]
            ended.append((args.loss, last["train_penalty"], last.get("loss_alpha")))

    data = tiny.rows(tiny.batch("bert"))
    trainer = MaxSupTrainer(
        model_init=lambda trial=None: tiny.bert(), args=arguments(tmp_path, **kwargs), train_dataset=data, eval_dataset=data,
        callbacks=[Ends()],
    )  # fmt: skip
    trainer.hyperparameter_search(
        hp_space=space, n_trials=trials, direction="minimize", backend="optuna", compute_objective=lambda m: m["eval_loss"]
    )
    return ended


def test_a_hyperparameter_search_over_the_loss(tmp_path):
    pytest.importorskip("optuna", reason="hyperparameter_search needs optuna")
    losses = ["cross_entropy", "maxsup"]
    plain, ours = search(tmp_path, lambda trial: {"loss": losses[trial.number]}, 2)
    assert plain == ("cross_entropy", 0.0, None) and ours[0] == "maxsup" and ours[1] > 0


def test_a_hyperparameter_search_over_the_parameters_of_a_loss(tmp_path):
    pytest.importorskip("optuna", reason="hyperparameter_search needs optuna")
    alphas = [0.0, 0.5]
    ended = search(tmp_path, lambda trial: {"loss_kwargs": {"alpha": alphas[trial.number], "alpha_end": None}}, 2)
    assert [alpha for *_, alpha in ended] == alphas


def test_a_hyperparameter_search_with_an_unknown_loss(tmp_path):
    pytest.importorskip("optuna", reason="hyperparameter_search needs optuna")
    with pytest.raises(ValueError, match="unknown loss 'nonsense'"):
        search(tmp_path, lambda trial: {"loss": "nonsense"}, 1)


@pytest.mark.parametrize("loss", ["maxsup", "online_label_smoothing"])
def test_each_training_begins_anew(loss, tmp_path):
    def trainer():
        args = arguments(tmp_path, loss=loss, max_steps=-1, num_train_epochs=3, learning_rate=1e-2)

        def model(trial=None):
            torch.manual_seed(0)
            return tiny.bert()

        return MaxSupTrainer(model_init=model, args=args, train_dataset=tiny.rows(tiny.batch("bert")))

    once, twice = trainer(), trainer()
    once.train()
    twice.train()
    twice.train()
    assert [entry["loss"] for entry in logs(once)] == [entry["loss"] for entry in logs(twice)]


def test_the_votes_of_each_training_come_from_its_model(tmp_path):
    made = []

    def model(trial=None):
        torch.manual_seed(0)
        made.append(tiny.resnet())
        return made[-1]

    data = tiny.rows(tiny.batch("resnet"))
    kwargs = {"loss": "zipf_label_smoothing", "loss_kwargs": {"dense": True}}
    losses = []
    for given in ({"model_init": model}, {"model": model()}):
        trainer = MaxSupTrainer(args=arguments(tmp_path, **kwargs), train_dataset=data, **given)
        trainer.train()
        losses.append([entry["loss"] for entry in logs(trainer)])
    assert losses[0] == losses[1]
    assert not any(module._forward_hooks for each in made for module in each.modules())


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone with it."""
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))


def test_a_loss_of_the_users_own_gets_its_votes(own_registry, tmp_path):
    seen = []

    @register_loss("counts_votes")
    def counts_votes(cross_entropy, logits, votes, *, lam=0.1):
        seen.append(votes)
        return cross_entropy, lam * logits.mean(-1)

    trainer = MaxSupTrainer(
        tiny.resnet(), arguments(tmp_path, loss="counts_votes"), train_dataset=tiny.rows(tiny.batch("resnet"))
    )
    trainer.train()
    assert seen[-1] is not None and seen[-1].shape[0] == 4


def test_a_formula_that_reads_a_variable_is_computed_with_its_value(own_registry):
    from maxsup_hf import create_loss

    strength = {"now": 1.0}

    @register_loss("reads_a_variable")
    def reads_a_variable(cross_entropy, top, mean, *, alpha=0.1):
        return cross_entropy, strength["now"] * alpha * (top - mean)

    z, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    loss, plain = create_loss("reads_a_variable"), ORIGINAL(z, labels)
    first = loss(z, labels) - plain
    strength["now"] = 3.0
    torch.testing.assert_close(loss(z, labels) - plain, 3 * first)


def test_the_parts_add_up_after_a_smaller_batch_was_found(tmp_path):
    class OutOfMemory(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.train_batch_size >= 8 and state.global_step == 2:
                raise RuntimeError("CUDA out of memory.")

    args = arguments(
        tmp_path, max_steps=4, logging_steps=4, auto_find_batch_size=True, per_device_train_batch_size=8, learning_rate=0.1
    )
    data = tiny.rows(tiny.batch("bert", size=32))
    trainer = MaxSupTrainer(tiny.bert(), args, train_dataset=data, callbacks=[OutOfMemory()])
    trainer.train()
    entry = logs(trainer)[0]
    assert entry["train_cross_entropy"] + entry["train_penalty"] == pytest.approx(entry["loss"], abs=1e-4)


def test_epochs_of_a_schedule_that_are_not_those_of_the_training(tmp_path):
    kwargs = {"schedule": "epoch/T", "epochs": 5}
    args = arguments(tmp_path, max_steps=4, loss_kwargs=kwargs)  # 8 rows, 4 a step: two epochs
    with pytest.raises(ValueError, match="must be the epochs of this training, 2, .* got 5"):
        MaxSupTrainer(tiny.bert(), args, train_dataset=tiny.rows(tiny.batch("bert"))).train()


def test_a_finished_training_that_is_resumed_still_says_what_trained(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    MaxSupTrainer(tiny.bert(), args, train_dataset=tiny.rows(tiny.batch("bert"))).train()
    resumed = MaxSupTrainer(tiny.bert(), args, train_dataset=tiny.rows(tiny.batch("bert")))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step >= 2 and resumed.trained_loss.spec.name == "maxsup"


# ---- names of labels, and soft labels in evaluation ----


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


@pytest.mark.parametrize("key", ["labels", "soft_labels"])
def test_soft_labels_are_evaluated_as_soft_labels(key, tmp_path):
    model, data = tiny.vit(), tiny.batch("vit")
    soft = torch.rand(8, tiny.CLASSES).softmax(-1)
    trainer = MaxSupTrainer(model, arguments(tmp_path), eval_dataset=tiny.rows(data | {key: soft}))
    with torch.no_grad():
        expected = ORIGINAL(model.eval()(data["pixel_values"]).logits, soft)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_regression_is_evaluated_by_its_own_loss(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(2, 1)

        def forward(self, x, labels):
            logits = self.out(x).squeeze(-1)
            return {"loss": (logits - labels).square().mean(), "logits": logits}

    rows = [{"x": torch.randn(2), "labels": torch.randn(())} for _ in range(4)]
    trainer = MaxSupTrainer(Net(), arguments(tmp_path), train_dataset=rows, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="a regression needs the stock Trainer"):
        trainer.train()


# ---- counts ----


class MeanOfTokens(MaxSupTrainer):
    """A mean of its own over the tokens of its micro-batch, of which each has another number."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs, labels = outputs_of(model, inputs)
        rows = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction=self.reduction)
        return rows.sum() / (labels != -100).sum()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_sum_that_is_divided_by_its_own_count_ends_training(reduction, tmp_path):
    from transformers import BertForTokenClassification

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


def test_class_weights_of_another_training_are_not_resumed(tmp_path):
    kwargs = {"save_strategy": "steps", "save_steps": 1}
    data = tiny.rows(tiny.batch("bert"))
    MaxSupTrainer(tiny.bert(), arguments(tmp_path, class_weights=[1, 2, 3, 4, 5], **kwargs), train_dataset=data).train()
    other = MaxSupTrainer(tiny.bert(), arguments(tmp_path, class_weights=[5, 4, 3, 2, 1], **kwargs), train_dataset=data)
    with pytest.raises(ValueError, match=r"was trained with another loss \(class_weights: \[1"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


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
