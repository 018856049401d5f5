"""A registered loss in a stock `transformers.Trainer`."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, compute_loss_func, list_losses
from maxsup_hf.losses import get_spec
from tests import tiny

# SGD, because Adam would hide a wrong scale of the gradient, and makes steps of what should be 0 and is rounding
OPTIONS = dict(use_cpu=True, disable_tqdm=True, save_strategy="no", per_device_train_batch_size=2, max_steps=4,
               gradient_accumulation_steps=3, learning_rate=1e-2, optim="sgd", report_to="none")  # fmt: skip


def causal_rows():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40, (8, 9), generator=generator)
    labels = ids.masked_fill(torch.arange(9) >= torch.randint(2, 10, (8, 1), generator=generator), -100)
    return [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)]


CASES = {
    "vit": (tiny.vit, tiny.rows(tiny.batch("vit"))),
    "bert": (tiny.bert, tiny.rows(tiny.batch("bert"))),
    "llama": (tiny.llama, causal_rows()),
}


@pytest.mark.parametrize("loss", list_losses())
@pytest.mark.parametrize("name", CASES)
def test_trains_as_our_trainer_does(name, loss, tmp_path):
    build, data = CASES[name]
    torch.manual_seed(0)
    model = build()
    if get_spec(loss).state is not None:
        with pytest.raises(ValueError, match=f"loss '{loss}' learns from epoch to epoch.*use MaxSupTrainer"):
            compute_loss_func(loss, model=model)
        return
    function = compute_loss_func(loss, model=model)
    Trainer(model, TrainingArguments(str(tmp_path), **OPTIONS), train_dataset=data, compute_loss_func=function,
            callbacks=[function]).train()  # fmt: skip
    torch.manual_seed(0)
    expected = build()
    MaxSupTrainer(expected, MaxSupTrainingArguments(str(tmp_path), loss=loss, **OPTIONS), train_dataset=data).train()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_evaluation_is_plain_cross_entropy(tmp_path):
    model, data = tiny.vit(), tiny.batch("vit")
    function = compute_loss_func("maxsup", model=model)
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), **OPTIONS), eval_dataset=tiny.rows(data), compute_loss_func=function
    )
    logits = model.eval()(pixel_values=data["pixel_values"]).logits
    assert trainer.evaluate()["eval_loss"] == pytest.approx(cross_entropy(logits, data["labels"]).item(), rel=1e-5)


def test_a_schedule_needs_the_callback(tmp_path):
    model = tiny.vit()
    function = compute_loss_func("maxsup", model=model)
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), **OPTIONS), train_dataset=CASES["vit"][1], compute_loss_func=function
    )
    with pytest.raises(ValueError, match=r"callbacks=\[f\]\), or set alpha_end=None"):
        trainer.train()
    trainer.compute_loss_func = compute_loss_func("maxsup", model=model, alpha_end=None)
    trainer.train()


def test_label_smoothing_beside_it_is_refused(tmp_path):
    model = tiny.vit()
    function = compute_loss_func("maxsup", model=model)
    args = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, **OPTIONS)
    trainer = Trainer(model, args, train_dataset=CASES["vit"][1], compute_loss_func=function, callbacks=[function])
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1 is ignored .* 'maxsup' replaces it"):
        trainer.train()


WEIGHT = [1.0, 20.0, 1.0, 1.0, 0.1]


@pytest.mark.parametrize("given", [WEIGHT, torch.tensor(WEIGHT), {f"LABEL_{k}": w for k, w in enumerate(WEIGHT)}])
@pytest.mark.parametrize("name", ["cross_entropy", "maxsup", "label_smoothing"])
def test_class_weights(name, given, tmp_path):
    """One step of SGD along the gradient of torch's weighted loss; evaluation stays unweighted."""
    data = tiny.batch("bert")
    options = {**OPTIONS, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 1}
    torch.manual_seed(0)
    model = tiny.bert()
    expected = tiny.bert()
    expected.load_state_dict(model.state_dict())
    function = compute_loss_func(name, model=model, weight=given, **({} if name == "cross_entropy" else {"alpha_end": None}))
    args = TrainingArguments(str(tmp_path), lr_scheduler_type="constant", max_grad_norm=0.0, **options)
    trainer = Trainer(
        model, args, train_dataset=tiny.rows(data), eval_dataset=tiny.rows(data), compute_loss_func=function,
        callbacks=[function],
    )  # fmt: skip
    trainer.train()
    logits = expected(**data).logits
    value = cross_entropy(
        logits, data["labels"], torch.tensor(WEIGHT), label_smoothing=0.1 if name == "label_smoothing" else 0.0
    )
    if name == "maxsup":
        value = value + 0.1 * (logits.amax(1) - logits.mean(1)).mean()
    value.backward()
    for parameter, reached in zip(expected.parameters(), model.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(reached.data, parameter.data - 1e-2 * parameter.grad, rtol=1e-5, atol=1e-7)
    plain = cross_entropy(model.eval()(**data).logits, data["labels"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.item(), rel=1e-5)


def test_class_weights_of_a_cut_batch_are_refused(tmp_path):
    model = tiny.bert()
    data = CASES["bert"][1]
    function = compute_loss_func("cross_entropy", model=model, weight=WEIGHT)
    args = TrainingArguments(str(tmp_path), **OPTIONS)  # three micro-batches for each step
    trainer = Trainer(model, args, train_dataset=data, compute_loss_func=function, callbacks=[function])
    with pytest.raises(ValueError, match="accumulation_steps=3 and 1 device.* Use MaxSupTrainer with class_weights"):
        trainer.train()
    with pytest.raises(ValueError, match=r"weight of compute_loss_func needs to know .* callbacks=\[f\]"):
        Trainer(model, args, train_dataset=data, compute_loss_func=function).train()


@pytest.mark.parametrize(
    ("build", "weight", "message"),
    [
        (tiny.bert, [1.0, 2.0], "one weight for each of the model's 5 classes, got 2"),
        (tiny.bert, {"yak": 1.0}, "unknown: 'yak'"),
        (tiny.bert, [1.0, 1.0, 1.0, 1.0, -1.0], r"class_weights\[4\] must be a finite number"),
        (tiny.llama, [1.0] * 40, "LlamaForCausalLM does not"),
    ],
)
def test_class_weights_that_do_not_fit(build, weight, message):
    with pytest.raises(ValueError, match=f"weight of compute_loss_func: .*{message}"):
        compute_loss_func("maxsup", model=build(), weight=weight)


def test_misuse():
    with pytest.raises(ValueError, match="unknown loss 'maxsub', did you mean 'maxsup'"):
        compute_loss_func("maxsub", model=tiny.vit())
    with pytest.raises(ValueError, match="config.num_labels is 1"):
        compute_loss_func("maxsup", model=tiny.vit(num_labels=1))
    function = compute_loss_func("maxsup", model=tiny.vit(), alpha_end=None)
    with pytest.raises(ValueError, match="labels is None"):
        function({"logits": torch.randn(2, 5)}, None)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
        function({"logits": torch.randn(2, 5)}, torch.zeros(3, dtype=torch.long))
