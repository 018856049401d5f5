"""`fused_linear_loss` of the Trainer against the Trainer without it."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from maxsup_hf.ops import backends
from tests import tiny, warm
from tests.heads import V
from tests.launch import two_processes
from tests.trainer.fused import FUSED, SERVED, build, check_equal, rows_to_learn, trainer_of

SCRIPT = Path(__file__).with_name("distributed_gradients.py")
FAMILIES = pytest.mark.parametrize("head", FUSED.values(), ids=FUSED)


class Sizes(TorchDispatchMode):
    """How many rows of logits each tensor made inside could hold."""

    def __init__(self):
        super().__init__()
        self.rows = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and V in tensor.shape:
                self.rows.add(tensor.numel() // V)
        return result


@FAMILIES
@pytest.mark.parametrize("loss", ["maxsup", "confidence_penalty", "label_smoothing+z_loss"])
def test_equals_the_trainer_without_it(head, loss, tmp_path, monkeypatch):
    monkeypatch.setattr("maxsup_hf.ops.linear.ROWS", 5)
    model, batch = build(head)
    names = model.state_dict().keys()
    check_equal(model, batch, tmp_path, loss=loss)
    assert "forward" not in vars(model.get_output_embeddings()) and model.state_dict().keys() == names


@pytest.mark.parametrize("name", ["causal lm", "Gemma2, soft-capped", "masked lm"])
@pytest.mark.parametrize("loss", SERVED)
def test_every_loss(name, loss, tmp_path):
    check_equal(*build(FUSED[name]), tmp_path, loss=loss)


@FAMILIES
def test_logits_are_never_made(head, tmp_path, monkeypatch):
    monkeypatch.setattr("maxsup_hf.ops.linear.ROWS", 5)
    model, batch = build(head)
    outputs = model(**batch)
    rows = getattr(outputs, "prediction_logits", outputs.get("logits")).numel() // V
    counted = [(labels != -100).sum().item() for labels in (batch["labels"], batch["labels"][:, 1:])]
    for fused in (False, True):
        with Sizes() as sizes:
            tiny.gradients(trainer_of(model, tmp_path, fused=fused), [batch])
        assert bool(sizes.rows & {rows, *counted}) is not fused


@FAMILIES
def test_accumulation(head, tmp_path):
    if not head.additive:
        return
    model, batch = build(head)
    trainer = trainer_of(model, tmp_path)
    whole, reference = tiny.gradients(trainer, [batch])
    for sizes in ([2, 2, 2, 2], [3, 3, 2]):
        value, gradient = tiny.gradients(trainer, tiny.cut(batch, sizes))
        assert value == pytest.approx(whole, rel=1e-6)
        assert tiny.relative_error(gradient, reference) <= 1e-6


@FAMILIES
def test_evaluation_is_untouched(head, tmp_path):
    model, batch = build(head)
    found = []
    for fused in (False, True):
        trainer = trainer_of(model, tmp_path, fused=fused)
        output = trainer.predict(tiny.rows(batch))
        found.append((output.metrics["test_loss"], torch.as_tensor(output.predictions[0])))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["causal lm", "masked lm", "Gemma2, soft-capped", "GPT-2, tied", "mixture of experts"])
def test_peft(name, tmp_path):
    """LoRA everywhere but on the output embedding, whose weight is frozen and gets no gradient."""
    model, batch = build(FUSED[name])
    of_head = next(key for key, module in model.named_modules() if module is model.get_output_embeddings())
    config = LoraConfig(target_modules="all-linear", exclude_modules=[of_head], init_lora_weights=False)
    model = get_peft_model(model, config)
    gradient = check_equal(model, batch, tmp_path)
    assert not any(of_head in key for key in gradient)


@pytest.mark.parametrize("name", ["causal lm", "masked lm", "T5"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(name, reentrant, tmp_path):
    model, batch = build(FUSED[name])
    _, reference = tiny.gradients(trainer_of(model, tmp_path, fused=False), [batch])
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    _, gradient = tiny.gradients(trainer_of(model, tmp_path), [batch])
    assert tiny.relative_error(gradient, reference) <= 1e-6


@pytest.mark.parametrize("name", ["causal lm", "Gemma2, soft-capped", "masked lm"])
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "bfloat16 model"])
def test_bfloat16(name, whole, tmp_path):
    model, batch = build(FUSED[name])
    exact = tiny.gradients(trainer_of(model, tmp_path, fused=False), [batch])[1]
    model = model.bfloat16() if whole else model
    errors = []
    for fused in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
            _, gradient = tiny.gradients(trainer_of(model, tmp_path, fused=fused), [batch])
        assert all(g.dtype == (torch.bfloat16 if whole else torch.float32) for g in gradient.values())
        errors.append(tiny.relative_error({name: g.float() for name, g in gradient.items()}, exact))
    assert 1e-4 < errors[1] <= 1.2 * errors[0]


@pytest.mark.parametrize("wrapping", ["ddp", "fsdp"])
def test_two_processes(wrapping, tmp_path):
    two_processes(SCRIPT, wrapping, tmp_path / "gradients.pt", *FUSED)
    saved = torch.load(tmp_path / "gradients.pt")
    assert saved["processes"] == 2
    for name, head in FUSED.items():
        if head.additive:
            model, batch = build(head)
            _, reference = tiny.gradients(trainer_of(model, tmp_path, fused=False), [batch])
            assert tiny.relative_error(saved["gradients"][name], reference) <= 1e-6, name


def test_loss_curves(tmp_path, monkeypatch):
    """200 steps of a tiny causal language model, by the plain path, the fast one, and without logits."""
    curves = {}
    for path in ("plain", "cpu", "fused"):
        monkeypatch.setattr(backends, "DEFAULT", "plain" if path == "plain" else "cpu")
        order = dict(train_sampling_strategy="sequential", max_steps=200, logging_steps=1, learning_rate=3e-3)
        data = rows_to_learn()  # and the seed of the model
        trainer = trainer_of(tiny.llama(), tmp_path, path == "fused", data, **order)
        trainer.train()
        curves[path] = torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])
    plain = curves["plain"]
    assert len(plain) == 200 and plain[-20:].mean() < 0.6 * plain[0]
    for path in ("cpu", "fused"):
        torch.testing.assert_close(curves[path], plain, rtol=1e-4, atol=1e-4)


class Looks(TrainerCallback):
    """What a callback sees between two steps."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model, **kwargs):
        model.eval()
        ids = torch.arange(3, 8)[None]
        with torch.no_grad():
            logits = model(ids).logits
        self.seen.append((logits, model.generate(ids, max_new_tokens=4, do_sample=False)))
        model.train()


def test_between_steps_the_model_is_itself(tmp_path):
    """Evaluation, generation and a forward in the middle of a training, and what is left after it."""
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        model, looks = tiny.llama(), Looks()
        names = list(model.state_dict())
        steps = dict(max_steps=3, eval_strategy="steps", eval_steps=1, learning_rate=0.0)
        trainer = trainer_of(model, tmp_path, fused, rows_to_learn(16), **steps)
        trainer.add_callback(looks)
        trainer.train()
        assert "forward" not in vars(model.lm_head) and list(model.state_dict()) == names
        evaluated = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
        found.append((evaluated, looks.seen))
    assert len(found[0][0]) == 3 and found[0][0] == found[1][0]
    for before, after in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_a_model_is_itself_after_an_exception(tmp_path):
    model, batch = build(FUSED["causal lm"])
    expected = model(**batch).loss.item()
    change = model.model.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.gradients(trainer_of(model, tmp_path), [batch])
    change.remove()
    assert "forward" not in vars(model.lm_head) and model(**batch).loss.item() == expected


def test_bf16_training(tmp_path):
    """Accelerate wraps the forward then, and casts what it returns."""
    losses = []
    for fused in (False, True):
        torch.manual_seed(0)
        trainer = trainer_of(tiny.llama(), tmp_path, fused, rows_to_learn(24), max_steps=3, bf16=True)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("flags", [[], ["--mlm"]], ids=["causal", "masked"])
def test_command_line(flags, tmp_path):
    short = (
        "--max_steps 3 --logging_steps 1 --per_device_train_batch_size 4 --max_eval_samples 8 --use_cpu true --block_size 32"
    )
    losses = []
    for fused in ("false", "true"):
        folder = tmp_path / fused
        command = ["train", "language-modeling", *flags, *short.split(), "--fused_linear_loss", fused]
        result = warm.run("maxsup-hf", *command, "--output_dir", folder, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses.append([log[key] for log in history for key in ("loss", "eval_loss") if key in log])
    assert len(losses[0]) >= 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)
