"""Evaluation is the stock Trainer's, whatever the training loss: plain cross-entropy, with everything that it offers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from maxsup_hf import MaxSupSeq2SeqTrainer, MaxSupSeq2SeqTrainingArguments, MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.heads import HEADS
from tests.trainer.trainings import arguments

FAMILIES = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def build(head):
    torch.manual_seed(0)
    return head.build(), tiny.rows(head.batch(torch.Generator().manual_seed(1)))


def pair(model, tmp_path, **kwargs):
    """Our Trainer and the stock one on the same model."""
    names = {"compute_metrics", "preprocess_logits_for_metrics", "eval_dataset"} & kwargs.keys()
    rest = {name: kwargs.pop(name) for name in names}
    options = dict(use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=8, **kwargs)
    yield MaxSupTrainer(model, MaxSupTrainingArguments(str(tmp_path), **options), **rest)
    yield Trainer(model, TrainingArguments(str(tmp_path), **options), **rest)


@FAMILIES
def test_eval_loss(head, tmp_path):
    model, data = build(head)
    for options in ({}, {"prediction_loss_only": True}):
        ours, stock = (trainer.evaluate() for trainer in pair(model, tmp_path, eval_dataset=data, **options))
        assert ours["eval_loss"] == pytest.approx(stock["eval_loss"], rel=1e-6)
        assert ours.keys() == stock.keys()


@FAMILIES
def test_predict(head, tmp_path):
    model, data = build(head)
    ours, stock = (trainer.predict(data) for trainer in pair(model, tmp_path))
    for a, b in ((ours.predictions, stock.predictions), (ours.label_ids, stock.label_ids)):
        for x, y in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
            np.testing.assert_array_equal(x, y)


def test_metrics_of_ones_own(tmp_path):
    model, data = build(HEADS["token classification"])

    def compute_metrics(prediction):
        assert prediction.predictions.shape == prediction.label_ids.shape == prediction.inputs.shape
        assert prediction.losses.shape == (len(data),)
        kept = prediction.label_ids != -100
        return {"accuracy": (prediction.predictions == prediction.label_ids)[kept].mean()}

    ours, stock = (
        trainer.evaluate()
        for trainer in pair(
            model, tmp_path, eval_dataset=data, include_for_metrics=["inputs", "loss"], compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        )
    )  # fmt: skip
    assert ours["eval_accuracy"] == stock["eval_accuracy"]


def test_predict_with_generate(tmp_path):
    options = dict(use_cpu=True, disable_tqdm=True, predict_with_generate=True)
    model, data = build(HEADS["T5"])
    ours = MaxSupSeq2SeqTrainer(model, MaxSupSeq2SeqTrainingArguments(str(tmp_path), **options)).predict(data)
    model, data = build(HEADS["T5"])  # generating leaves its mark on a model's generation config
    stock = Seq2SeqTrainer(model, Seq2SeqTrainingArguments(str(tmp_path), **options)).predict(data)
    np.testing.assert_array_equal(ours.predictions, stock.predictions)
    assert ours.metrics["test_loss"] == pytest.approx(stock.metrics["test_loss"], rel=1e-6)


def test_evaluation_between_training_steps_changes_nothing(tmp_path):
    def train(**options):
        model, data = build(HEADS["causal lm"])
        args = MaxSupTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=4, save_strategy="no",
                                       logging_steps=1, **options)  # fmt: skip
        trainer = MaxSupTrainer(model, args, train_dataset=data, eval_dataset=data)
        trainer.train()
        return model.state_dict()

    plain, evaluated = train(), train(eval_strategy="steps", eval_steps=1)
    assert all(torch.equal(plain[key], evaluated[key]) for key in plain)


@pytest.mark.parametrize("key", ["labels", "soft_labels"])
def test_soft_labels_are_evaluated_as_soft_labels(key, tmp_path):
    model, data = tiny.vit(), tiny.batch("vit")
    soft = torch.rand(8, tiny.CLASSES).softmax(-1)
    trainer = MaxSupTrainer(model, arguments(tmp_path), eval_dataset=tiny.rows(data | {key: soft}))
    with torch.no_grad():
        expected = cross_entropy(model.eval()(data["pixel_values"]).logits, soft)
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
