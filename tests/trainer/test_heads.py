"""Every family of heads: equal to the stock Trainer and to the loss of raw logits, and exact under accumulation."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import Trainer, TrainingArguments

from maxsup_hf import create_loss
from maxsup_hf.trainer.cross_entropy_patch import CrossEntropyPatch
from tests import tiny
from tests.heads import HEADS
from tests.trainer.trainings import build, ours

FAMILIES = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def stock(model, tmp_path, **kwargs):
    return Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, **kwargs))


@FAMILIES
def test_cross_entropy_equals_the_stock_trainer(head, tmp_path):
    model, batch = build(head)
    expected, reference = tiny.gradients(stock(model, tmp_path), [batch])
    function, criterion, keys = torch.nn.functional.cross_entropy, torch.nn.CrossEntropyLoss, list(model.state_dict())
    value, gradient = tiny.gradients(ours(model, tmp_path, "cross_entropy"), [batch])
    assert torch.nn.functional.cross_entropy is function and torch.nn.CrossEntropyLoss is criterion
    assert list(model.state_dict()) == keys
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6


@pytest.mark.parametrize("head", [h for h in HEADS.values() if h.smoothed], ids=[k for k, h in HEADS.items() if h.smoothed])
def test_label_smoothing_equals_the_stock_trainer(head, tmp_path):
    model, batch = build(head)
    expected, reference = tiny.gradients(stock(model, tmp_path, label_smoothing_factor=0.1), [batch])
    value, gradient = tiny.gradients(ours(model, tmp_path, "label_smoothing"), [batch])
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6


@pytest.mark.parametrize("head", [h for h in HEADS.values() if h.loss], ids=[k for k, h in HEADS.items() if h.loss])
def test_maxsup_equals_the_loss_of_raw_logits(head, tmp_path):
    model, batch = build(head)
    model.train()
    expected = head.loss(create_loss("maxsup"), model(**batch), batch)
    expected.backward()
    reference = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    value, gradient = tiny.gradients(ours(model, tmp_path, "maxsup"), [batch])
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [3, 3, 2]], ids=str)
@pytest.mark.parametrize("head", [h for h in HEADS.values() if h.additive], ids=[k for k, h in HEADS.items() if h.additive])
def test_accumulation_gives_the_gradient_of_the_whole_batch(head, sizes, tmp_path):
    model, batch = build(head)
    trainer = ours(model, tmp_path, "maxsup")
    whole, reference = tiny.gradients(trainer, [batch])
    value, gradient = tiny.gradients(trainer, tiny.cut(batch, sizes))
    assert value == pytest.approx(whole, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6


def test_an_auxiliary_loss_is_neither_lost_nor_multiplied_under_accumulation(tmp_path):
    model, batch = build(HEADS["mixture of experts"])
    whole, _ = tiny.gradients(ours(model, tmp_path, "maxsup"), [batch])
    value, _ = tiny.gradients(ours(model, tmp_path, "maxsup"), tiny.cut(batch, [2, 2, 2, 2]))
    model.config.router_aux_loss_coef = 0.0
    model.router_aux_loss_coef = 0.0
    without, _ = tiny.gradients(ours(model, tmp_path, "maxsup"), [batch])
    assert whole - without > 0.1
    assert value - without == pytest.approx(whole - without, rel=0.1)


def test_a_model_that_returns_tuples(tmp_path):
    model, batch = build(HEADS["image classification"])
    value, reference = tiny.gradients(ours(model, tmp_path, "maxsup"), [batch])
    batch["return_dict"] = False
    assert isinstance(model(**batch), tuple)
    again, gradient = tiny.gradients(ours(model, tmp_path, "maxsup"), [batch])
    assert again == value and tiny.relative_error(gradient, reference) == 0


def test_logits_of_the_last_positions_only(tmp_path):
    model, batch = build(HEADS["causal lm"])
    batch["labels"] = batch["labels"][:, -4:]
    batch["labels"][:, -1] = 7
    trainer = ours(model, tmp_path, "maxsup")
    _, reference = tiny.gradients(trainer, [batch | {"logits_to_keep": 4}])
    expected = create_loss("maxsup")(model(batch["input_ids"]).logits[:, -4:-1], batch["labels"][:, 1:])
    model.zero_grad()
    expected.backward()
    by_hand = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert tiny.relative_error(reference, by_hand) <= 1e-6
    pieces = [piece | {"logits_to_keep": 4} for piece in tiny.cut(batch, [3, 3, 2])]
    assert tiny.relative_error(tiny.gradients(trainer, pieces)[1], reference) <= 1e-6


def test_replicas_in_threads(tmp_path):
    """As DataParallel runs them: several forwards at a time inside one swap."""
    model, batch = build(HEADS["sequence classification"])
    wrapped = torch.nn.DataParallel(model)
    patch, halves = CrossEntropyPatch(create_loss("maxsup")), tiny.cut(batch, [4, 4])
    with patch.opened(wrapped), ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(lambda half: wrapped(**half).loss, halves))
    for loss, half in zip(losses, halves, strict=True):
        torch.testing.assert_close(loss, create_loss("maxsup")(model(**half).logits, half["labels"]))
    assert len(patch.calls) == 2
