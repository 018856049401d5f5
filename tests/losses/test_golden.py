"""Values computed by the public code of the authors and of the baselines (tests/golden.json)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maxsup_hf import create_loss, ls_decomposition, maxsup_loss
from maxsup_hf.data.mixup import mix_targets
from maxsup_hf.losses._schedules import SCHEDULES, interpolate, staircase

GOLDEN = json.loads((Path(__file__).parents[1] / "golden.json").read_text())
TOLERANCE = {"float64": 1e-10, "float32": 5e-6}


def inputs(case, dtype):
    if "recipe" in case:
        recipe = case["recipe"]
        drawn = np.random.RandomState(recipe["seed"]).randn(*recipe["shape"])
        logits = torch.from_numpy(np.round(drawn * recipe["scale"] * 1024))
        for row, column, value in recipe["but"]:
            logits[row, column] = value
        logits /= 1024
    else:
        logits = torch.tensor(case["logits"], dtype=torch.float64)
    if "targets" in case:
        labels = torch.tensor(case["targets"], dtype=dtype)
    else:
        labels = torch.tensor(case["labels"])
    if "mix" in case:
        labels = mix_targets(labels, logits.shape[-1], case["mix"]).to(dtype)
    return logits.to(dtype).requires_grad_(), labels


def check(case, value, logits, precision):
    tolerance = case.get("tolerance", {}).get(precision, TOLERANCE[precision])
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(value.double(), torch.tensor(case["value"], dtype=torch.float64), **close)
    value.backward()
    assert logits.grad.dtype == logits.dtype
    if "grad_samples" in case:
        for row, column, expected in case["grad_samples"]:
            assert logits.grad[row, column].item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        torch.testing.assert_close(logits.grad.double(), torch.tensor(case["grad_logits"], dtype=torch.float64), **close)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN["losses"], ids=lambda case: case["id"])
def test_loss(case, precision):
    logits, labels = inputs(case, getattr(torch, precision))
    constant = {"alpha_end": None} if case["loss"] == "maxsup" else {}
    loss = create_loss(case["loss"], **case.get("kwargs", {}), **constant)
    value = loss(logits, labels, votes=torch.tensor(case["votes"]) if "votes" in case else None)
    if case.get("penalty_only"):
        value = value - create_loss("cross_entropy")(logits, labels)
    check(case, case.get("factor", 1) * value + case.get("offset", 0), logits, precision)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", [c for c in GOLDEN["losses"] if c["loss"] == "maxsup"], ids=lambda case: case["id"])
def test_maxsup_loss(case, precision):
    logits, labels = inputs(case, getattr(torch, precision))
    check(case, maxsup_loss(logits, labels, alpha=case["kwargs"]["alpha"]), logits, precision)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN["ls_decomposition"], ids=lambda case: case["id"])
def test_ls_decomposition(case, precision):
    logits, labels = inputs(case, getattr(torch, precision))
    terms = ls_decomposition(logits, labels, **case["kwargs"])._asdict()
    terms["total"] = sum(terms.values())
    check(case, terms[case["part"]], logits, precision)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN["online_label_smoothing"], ids=lambda case: case["id"])
def test_online_label_smoothing(case, precision):
    dtype, given = getattr(torch, precision), case["hyperparameters"]
    close = dict(rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
    hard, soft = given.get("ce_weight", given.get("alpha_hard")), given.get("soft_weight", 1 - given.get("alpha_hard", 0))
    columns = case["layout"] == "column"
    loss = create_loss(
        "online_label_smoothing",
        alpha=soft / (hard + soft),
        smoothing=given.get("smoothing", 0.1),
        start={"zeros": "zeros", "uniform 1/K": "uniform"}.get(given.get("initial_soft_labels"), "smoothed"),
        fallback="zeros" if columns else "uniform",
        freeze_threshold=given.get("freeze_threshold", 1.0),
    )
    for epoch, (batches, expected) in enumerate(zip(case["epochs"], case["expected"], strict=True)):
        for batch, answer in zip(batches, expected["batches"], strict=True):
            logits = torch.tensor(batch["logits"], dtype=dtype, requires_grad=True)
            value = (hard + soft) * loss(logits, torch.tensor(batch["labels"]))
            check({"value": answer["loss"], "grad_logits": answer["grad_logits"]}, value, logits, precision)
        loss.end_epoch(epoch + 1)
        table = torch.tensor(expected["soft_labels_after_epoch"], dtype=torch.float64)
        table = table.T if columns else table
        learned = loss.state.table.double()
        if not columns:  # they fill in a class without a correct prediction, we leave that to `fallback`
            table = table.where((learned > 0).any(-1, keepdim=True), 0)
        torch.testing.assert_close(learned, table, **close)
    first = case["epochs"][0][0]
    seen = loss.state.total.clone()
    value = (hard + soft) * loss.eval()(torch.tensor(first["logits"], dtype=dtype), torch.tensor(first["labels"]))
    assert value.item() == pytest.approx(case["eval_loss"], rel=TOLERANCE[precision])
    assert torch.equal(loss.state.total, seen)  # evaluation does not change the state


@pytest.mark.parametrize("case", GOLDEN["alpha_schedule"], ids=lambda case: f"{case['epochs']} epochs")
def test_alpha_schedule(case):
    epochs = case["epochs"]

    def values(fraction):
        return [interpolate(0.1, 0.2, fraction(epoch / epochs)) for epoch in range(epochs)]

    assert values(lambda p: SCHEDULES["epoch/T"](p, epochs)) == pytest.approx(case["epoch/epochs"], abs=1e-10)
    assert values(lambda p: SCHEDULES["epoch"](p, epochs)) == pytest.approx(case["epoch/epochs"], abs=1e-10)
    last = values(lambda p: SCHEDULES["epoch/(T-1)"](p, epochs))
    assert last == pytest.approx(case["epoch/max(1,epochs-1)"], abs=1e-10)
    if case["epoch/(epochs-1)"] != "ZeroDivisionError":
        assert last == pytest.approx(case["epoch/(epochs-1)"], abs=1e-10)
    hard_coded = values(lambda p: staircase(p, epochs, 299))
    assert hard_coded == pytest.approx(case["epoch/299 hard-coded"], abs=1e-10)


@pytest.mark.parametrize("case", GOLDEN["mix_targets"], ids=lambda case: f"{case['pairing']}-{case['smoothing']}")
def test_mix_targets(case):
    labels = torch.tensor(case["labels"])
    mixed = mix_targets(labels, case["num_classes"], case["lam"], pairing=case["pairing"], smoothing=case["smoothing"])
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, torch.tensor(case["targets"]), rtol=1e-6, atol=1e-7)
