import json
import math

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from maxsup_hf import MaxSupMixin, MaxSupTrainer, MaxSupTrainingArguments, create_loss, list_losses
from tests import tiny

FAMILIES = pytest.mark.parametrize("name", tiny.CLASSIFIERS)


def ours(model, tmp_path, **kwargs):
    options = {"train_dataset", "eval_dataset", "data_collator", "compute_metrics", "compute_loss_func"} & kwargs.keys()
    rest = {key: kwargs.pop(key) for key in options}
    return MaxSupTrainer(model, arguments(tmp_path, **kwargs), **rest)


def arguments(tmp_path, **kwargs):
    defaults = dict(
        use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no", per_device_train_batch_size=4,
        learning_rate=1e-2, remove_unused_columns=False,
    )  # fmt: skip
    return MaxSupTrainingArguments(str(tmp_path), **defaults | kwargs)


def stock(model, tmp_path, **kwargs):
    return Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, **kwargs))


def by_hand(loss, model, data, progress=0.0):
    """Loss and gradients of the loss on the model's raw logits."""
    model.zero_grad()
    model.train()
    inputs = {key: value for key, value in data.items() if key != "labels"}
    value = create_loss(loss)(model(**inputs).logits, data["labels"], progress)
    value.backward()
    return value.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- the swap into the Trainer ----


@FAMILIES
@pytest.mark.parametrize(("loss", "factor"), [("cross_entropy", 0.0), ("label_smoothing", 0.1)])
def test_equals_the_stock_trainer(name, loss, factor, tmp_path):
    model, data = tiny.CLASSIFIERS[name](), tiny.batch(name)
    value, gradient = tiny.gradients(ours(model, tmp_path, loss=loss), [data])
    expected, reference = tiny.gradients(stock(model, tmp_path, label_smoothing_factor=factor), [data])
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6


@FAMILIES
@pytest.mark.parametrize("loss", list_losses())
def test_equals_the_loss_of_raw_logits(name, loss, tmp_path):
    model, data = tiny.CLASSIFIERS[name](), tiny.batch(name)
    value, gradient = tiny.gradients(ours(model, tmp_path, loss=loss), [data])
    expected, reference = by_hand(loss, model, data)
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6


@FAMILIES
@pytest.mark.parametrize("loss", list_losses())
@pytest.mark.parametrize("sizes", [[3, 2, 2, 1], [2, 2, 2, 2], [3, 3, 2]], ids=str)
def test_accumulation_gives_the_gradient_of_the_whole_batch(name, loss, sizes, tmp_path):
    model, data = tiny.CLASSIFIERS[name](), tiny.batch(name)
    data["labels"][2] = -100  # so the micro-batches are uneven in what they count, too
    trainer = ours(model, tmp_path, loss=loss)
    whole, reference = tiny.gradients(trainer, [data])
    value, gradient = tiny.gradients(trainer, tiny.cut(data, sizes))
    assert value == pytest.approx(whole, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6


def test_the_stock_trainer_is_off_under_accumulation(tmp_path):
    """BERT's head drops num_items_in_batch, which the Trainer believes it used (transformers issue 47688). When this
    fails, transformers has mended it, and `MaxSupMixin` may need less."""
    model, data = tiny.bert(), tiny.batch("bert")
    trainer = stock(model, tmp_path)
    _, reference = tiny.gradients(trainer, [data])
    _, gradient = tiny.gradients(trainer, tiny.cut(data, [2, 2, 2, 2]))
    assert tiny.relative_error(gradient, {key: 4 * value for key, value in reference.items()}) <= 1e-6


def test_causal_language_model_counts_shifted_labels(tmp_path):
    model = tiny.llama()
    ids = torch.randint(3, 40, (8, 9))
    labels = ids.masked_fill(torch.arange(9) >= torch.randint(2, 10, (8, 1)), -100)
    data = {"input_ids": ids, "labels": labels}
    trainer = ours(model, tmp_path)
    _, reference = tiny.gradients(trainer, [data])
    _, gradient = tiny.gradients(trainer, tiny.cut(data, [3, 2, 2, 1]))
    assert tiny.relative_error(gradient, reference) <= 1e-6
    _, gradient = tiny.gradients(ours(model, tmp_path, loss="cross_entropy"), tiny.cut(data, [3, 2, 2, 1]))
    _, reference = tiny.gradients(stock(model, tmp_path), tiny.cut(data, [3, 2, 2, 1]))
    assert tiny.relative_error(gradient, reference) <= 1e-6


# ---- soft labels ----


@pytest.mark.parametrize("key", ["labels", "soft_labels"])
def test_soft_labels(key, tmp_path):
    model, data = tiny.vit(), tiny.batch("vit")
    soft = torch.rand(8, tiny.CLASSES).softmax(-1)
    value, gradient = tiny.gradients(ours(model, tmp_path), tiny.cut(data | {key: soft}, [3, 5]))
    expected, reference = by_hand("maxsup", model, data | {"labels": soft})
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6
    assert model.config.problem_type == "single_label_classification"


def test_training_on_a_column_of_soft_labels(tmp_path):
    data = tiny.batch("vit")
    data["soft_labels"] = torch.rand(8, tiny.CLASSES).softmax(-1)
    trainer = ours(tiny.vit(), tmp_path, train_dataset=tiny.rows(data), eval_dataset=tiny.rows(data), max_steps=2,
                   remove_unused_columns=True)  # fmt: skip
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])


# ---- logs, evaluation, what is saved ----


def test_logs_and_evaluation(tmp_path):
    data = tiny.rows(tiny.batch("vit", size=12))
    trainer = ours(tiny.vit(), tmp_path, train_dataset=data, eval_dataset=data, max_steps=5, logging_steps=2,
                   gradient_accumulation_steps=2, logging_first_step=True)  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [1, 2, 4]
    for log in logs:
        assert log["train_cross_entropy"] + log["train_penalty"] == pytest.approx(log["loss"], abs=2e-6)
        assert log["loss_alpha"] == pytest.approx(0.1 + 0.1 * (log["step"] - 1) / 5)
        assert log["train_penalty"] > 0
    metrics = trainer.evaluate()
    labels = torch.stack([row["labels"] for row in data])
    with torch.no_grad():
        logits = trainer.model(pixel_values=torch.stack([row["pixel_values"] for row in data])).logits
    assert metrics["eval_loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_sum_of_losses_is_trained_and_logged(tmp_path):
    data = tiny.batch("vit")
    kwargs = {"maxsup": {"alpha": 0.3, "alpha_end": 0.4}, "z_loss": {"lam": 0.01}}
    trainer = ours(tiny.vit(), tmp_path, loss="maxsup+z_loss", loss_kwargs=kwargs, max_steps=2,
                   train_dataset=tiny.rows(data), per_device_train_batch_size=8)  # fmt: skip
    logits = trainer.model.train()(data["pixel_values"]).logits
    expected = create_loss("maxsup+z_loss", **kwargs)(logits, data["labels"]).item()
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    assert (first["loss_maxsup.alpha"], second["loss_maxsup.alpha"]) == pytest.approx((0.3, 0.35))
    assert first["loss_z_loss.lam"] == 0.01
    z = logits.detach()
    assert first["train_penalty_maxsup"] == pytest.approx(0.3 * (z.amax(-1) - z.mean(-1)).mean().item(), rel=1e-3)
    assert first["train_penalty_z_loss"] == pytest.approx(0.01 * z.logsumexp(-1).square().mean().item(), rel=1e-3)
    assert first["train_penalty_maxsup"] + first["train_penalty_z_loss"] == pytest.approx(first["train_penalty"], rel=1e-3)
    trainer.create_model_card()
    assert "\n- maxsup\n" in (card := (tmp_path / "README.md").read_text()) and "\n- z_loss\n" in card


def test_cross_entropy_logs_no_penalty(tmp_path):
    trainer = ours(tiny.vit(), tmp_path, loss="cross_entropy", train_dataset=tiny.rows(tiny.batch("vit")), max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["train_penalty"] == 0 and log["train_cross_entropy"] == pytest.approx(log["loss"], abs=2e-6)
    assert "loss_alpha" not in log


def test_what_is_saved(tmp_path):
    trainer = ours(tiny.vit(), tmp_path, loss_kwargs={"alpha": 0.3}, train_dataset=tiny.rows(tiny.batch("vit")), max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    args = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (args.loss, args.loss_kwargs) == ("maxsup", {"alpha": 0.3})
    card = (tmp_path / "README.md").read_text()
    assert "| `alpha` | 0.3 |\n| `alpha_end` | 0.2 |\n| `schedule` | linear |\n" in card
    assert card.startswith("---\n") and "\n- maxsup\n" in card
    assert set(json.loads((tmp_path / "config.json").read_text())) == set(json.loads(trainer.model.config.to_json_string()))


@FAMILIES
def test_resuming_continues_weights_and_schedule(name, tmp_path):
    def run(folder, resume=None):
        torch.manual_seed(1)
        data = tiny.rows(tiny.batch(name, size=16))
        trainer = ours(tiny.CLASSIFIERS[name](), folder, train_dataset=data, max_steps=6, save_strategy="steps",
                       save_steps=3, train_sampling_strategy="sequential")  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.log_history[-2]["loss_alpha"] == pytest.approx(0.1 + 0.1 * 5 / 6)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    data = tiny.rows(tiny.batch("vit", size=16))
    every = dict(save_strategy="steps", eval_strategy="steps", save_steps=2, eval_steps=2, load_best_model_at_end=True)
    trainer = ours(tiny.vit(), tmp_path, train_dataset=data, eval_dataset=data, max_steps=6, learning_rate=0.3, **every)
    trainer.train()
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, best[key]), key


# ---- misuse ----


def test_two_losses_for_one_training(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func and loss='maxsup' are two losses"):
        ours(tiny.vit(), tmp_path, compute_loss_func=lambda *args, **kwargs: 0)


def test_arguments_without_a_loss(tmp_path):
    with pytest.raises(TypeError, match="use MaxSupTrainingArguments"):
        MaxSupTrainer(tiny.vit(), TrainingArguments(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_labels": 1}, "config.num_labels is 1"),
        ({"problem_type": "regression"}, "config.problem_type is 'regression'"),
        ({"problem_type": "multi_label_classification"}, "problem_type is 'multi_label_classification'"),
    ],
)
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_heads_without_classes_to_choose_from(name, config, message, tmp_path):
    trainer = ours(tiny.CLASSIFIERS[name](**config), tmp_path, train_dataset=tiny.rows(tiny.batch(name)), max_steps=1)
    with pytest.raises(ValueError, match=message):
        trainer.train()


@pytest.mark.parametrize("wrong", [tiny.CLASSES, -1])
@pytest.mark.parametrize("wrap", [list, tiny.ItemsOnly, Dataset.from_list], ids=["list", "torch", "datasets"])
def test_labels_out_of_range(wrong, wrap, tmp_path):
    rows = tiny.rows(tiny.batch("bert"))
    rows[5]["labels"] = torch.tensor(wrong)
    if wrap is Dataset.from_list:
        rows = [{key: value.tolist() for key, value in row.items()} for row in rows]
    trainer = ours(tiny.bert(), tmp_path, train_dataset=wrap(rows), max_steps=1, per_device_train_batch_size=8)
    with pytest.raises(ValueError, match=r"labels.*\[0, 5\)"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(8), r"logits' shape, \(8, 5\), got torch.float32 of shape \(8,\)"),
        (torch.rand(8, 3), r"logits' shape, \(8, 5\), got torch.float32 of shape \(8, 3\)"),
        (torch.ones(8, 5), "sum to 1, got sums from 5 to 5.*multi-label"),
    ],
)
def test_float_labels_that_are_no_probabilities(labels, message, tmp_path):
    rows = tiny.rows(tiny.batch("vit") | {"labels": labels})
    trainer = ours(tiny.vit(), tmp_path, train_dataset=rows, max_steps=1, per_device_train_batch_size=8)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0 and trainer.model.config.problem_type is None


def test_a_column_of_float_labels(tmp_path):
    data = Dataset.from_dict({"input_ids": [[5, 6]] * 4, "labels": [0.0, 1.0, 0.5, 2.0]})
    with pytest.raises(ValueError, match="column 'labels' of train_dataset is float64.*regression"):
        ours(tiny.bert(), tmp_path, train_dataset=data, max_steps=1).train()


@pytest.mark.parametrize("wrap", [list, tiny.ItemsOnly, Dataset.from_list], ids=["list", "torch", "datasets"])
def test_an_empty_data_set(wrap, tmp_path):
    with pytest.raises(ValueError, match="train_dataset is empty"):
        ours(tiny.vit(), tmp_path, train_dataset=wrap([]), max_steps=1).train()


class OwnLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)

    def forward(self, x, labels):
        logits = self.linear(x)
        return {"loss": logits.square().mean(), "logits": logits}


def test_a_model_without_cross_entropy_is_refused(tmp_path):
    rows = [{"x": torch.randn(2), "labels": torch.tensor(1)}] * 4
    with pytest.raises(ValueError, match="loss='maxsup' was asked for, but OwnLoss trained on a loss without"):
        ours(OwnLoss(), tmp_path, train_dataset=rows, max_steps=1).train()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_logits_stop_with_the_step_and_spare_checkpoints(poison, tmp_path):
    rows = tiny.rows(tiny.batch("vit", size=16))
    rows[9]["pixel_values"] = torch.full((3, 8, 8), poison)
    each_step = dict(max_steps=4, save_strategy="steps", save_steps=1, train_sampling_strategy="sequential")
    trainer = ours(tiny.vit(), tmp_path, train_dataset=tiny.ItemsOnly(rows), **each_step)
    with pytest.raises(FloatingPointError, match="the training loss is nan in step 3"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    weights = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2").state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[name]) and value.isfinite().all()


def test_the_mixin_on_another_trainer(tmp_path):
    class Mine(Trainer):
        def compute_loss(self, *args, **kwargs):
            self.called = True
            return super().compute_loss(*args, **kwargs)

    class MaxSupMine(MaxSupMixin, Mine):
        pass

    trainer = MaxSupMine(tiny.vit(), arguments(tmp_path, max_steps=1), train_dataset=tiny.rows(tiny.batch("vit")))
    trainer.train()
    assert trainer.called and trainer.state.log_history[0]["train_penalty"] > 0
