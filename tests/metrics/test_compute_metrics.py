"""The streaming metrics as `compute_metrics=` of a stock Trainer, for complete evaluation sets and batch by batch."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, LlamaForCausalLM, Trainer, TrainingArguments

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.metrics import CalibrationMetrics, FeatureGeometry, LogitMetrics, feature_geometry, nll
from maxsup_hf.scripts.common.run import classification_metrics
from tests import tiny
from tests.heads import HEADS


def trainer(model, tmp_path, **kwargs):
    options = {name: kwargs.pop(name) for name in ("batch_eval_metrics",) if name in kwargs}
    args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=3, **options)
    return Trainer(model, args, **kwargs)


def images(model):
    pixels = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": x, "labels": i % tiny.CLASSES} for i, x in enumerate(pixels)]


@pytest.mark.parametrize("metrics", [CalibrationMetrics, LogitMetrics])
def test_whole_and_batch_by_batch(metrics, tmp_path):
    model = tiny.vit()
    data = images(model)
    found = {}
    for batchwise in (False, True):
        run = trainer(model, tmp_path, eval_dataset=data, compute_metrics=metrics(), batch_eval_metrics=batchwise)
        first, found[batchwise] = run.evaluate(), run.evaluate()  # a second evaluation starts from scratch
        for name, value in found[batchwise].items():
            assert value == first[name] or name.endswith(("runtime", "per_second"))
    predicted = run.predict(data)
    expected = metrics()
    expected.update(predicted.predictions, predicted.label_ids)
    for name, value in expected.compute().items():
        if value == value:
            assert found[False][f"eval_{name}"] == pytest.approx(value) == found[True][f"eval_{name}"]
    if metrics is CalibrationMetrics:
        assert found[True]["eval_nll"] == pytest.approx(found[True]["eval_loss"], rel=1e-5)


def test_labels_that_the_head_ignores(tmp_path):
    head = HEADS["token classification"]
    model, data = head.build(), tiny.rows(head.batch(torch.Generator().manual_seed(1)))
    run = trainer(
        model, tmp_path, eval_dataset=data, compute_metrics=CalibrationMetrics(next_token=False), batch_eval_metrics=True
    )
    predicted = run.predict(data)
    counted = predicted.label_ids != -100
    assert not counted.all()
    expected = nll(predicted.predictions[counted], predicted.label_ids[counted])
    assert predicted.metrics["test_nll"] == pytest.approx(expected)


class ShiftsByItself(LlamaForCausalLM):
    """A head that does not use transformers' loss function, as those of ImageGPT and Qwen2-Audio."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = super().forward(input_ids, attention_mask).logits
        shift_logits, shift_labels = logits[:, :-1], labels[:, 1:]
        return {"loss": cross_entropy(shift_logits.flatten(0, 1), shift_labels.flatten()), "logits": logits}


@pytest.mark.parametrize("batchwise", [False, True])
@pytest.mark.parametrize("maxsup", [False, True], ids=["stock Trainer", "MaxSupTrainer"])
@pytest.mark.parametrize("head", ["causal lm", "causal lm, shifts by itself", "token classification"])
def test_the_label_that_a_position_predicts(head, maxsup, batchwise, tmp_path, recwarn):
    """The NLL is the model's own loss. A MaxSup trainer knows whether its model predicts the next token."""
    case = HEADS[head.partition(",")[0]]
    model, data = case.build(), tiny.rows(case.batch(torch.Generator().manual_seed(1)))[:3]
    if head.endswith("by itself"):
        model.__class__ = ShiftsByItself
    metrics = CalibrationMetrics(next_token=None if maxsup else head.startswith("causal"))
    options = {"eval_dataset": data, "compute_metrics": metrics}
    if maxsup:
        args = MaxSupTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, batch_eval_metrics=batchwise)
        found = MaxSupTrainer(model, args, **options).evaluate()
    else:
        found = trainer(model, tmp_path, batch_eval_metrics=batchwise, **options).evaluate()
    assert found["eval_nll"] == pytest.approx(found["eval_loss"], rel=1e-4)
    assert not [each for each in recwarn if "next_token" in str(each.message)]


def test_what_is_not_known_is_told():
    logits, labels = np.random.default_rng(0).normal(size=(2, 5, 3)), np.ones((2, 5), int)
    with pytest.warns(UserWarning, match=r"at that position\. For a causal .*CalibrationMetrics\(next_token=True\)"):
        same = CalibrationMetrics()(EvalPrediction(logits, labels))
    assert same["nll"] == pytest.approx(nll(logits.reshape(10, 3), labels.ravel()))


def test_geometry_of_hidden_states(tmp_path):
    model = tiny.vit(output_hidden_states=True)
    data = images(model)

    def features(outputs, labels):
        return outputs[1][-1][:, 0]

    run = trainer(
        model, tmp_path, eval_dataset=data, compute_metrics=FeatureGeometry(tiny.CLASSES), batch_eval_metrics=True,
        preprocess_logits_for_metrics=features,
    )  # fmt: skip
    found = run.evaluate()
    model.eval()
    with torch.no_grad():
        hidden = model(torch.stack([row["pixel_values"] for row in data])).hidden_states[-1][:, 0]
    expected = feature_geometry(hidden, np.array([row["labels"] for row in data]))
    for name in ("d_within", "d_total", "r2", "nc1", "effective_rank"):
        assert found[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-4), name


def test_the_training_scripts_report_them(tmp_path):
    model = tiny.vit()
    data = images(model)
    found = trainer(model, tmp_path, eval_dataset=data, compute_metrics=classification_metrics).evaluate()
    names = {"accuracy", "nll", "brier", "ece", "adaptive_ece", "classwise_ece", "mce", "confidence_when_wrong", "margin"}
    assert {f"eval_{name}" for name in names | {"near_zero_share", "ls_error_amplification"}} <= found.keys()
