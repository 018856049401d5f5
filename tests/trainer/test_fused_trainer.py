"""`fused_linear_loss` of the Trainer against the Trainer without it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    TrainerCallback,
)

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, list_losses
from maxsup_hf.data.mixup import MixupCollator
from maxsup_hf.losses import get_spec
from maxsup_hf.ops import backends
from tests import HANGS, tiny
from tests.heads import HEADS, LLAMA, SMALL, STILL, Head, V, aligned, causal, masked_lm, shifted
from tests.launch import two_processes

SCRIPT = Path(__file__).with_name("distributed_gradients.py")


def gpt2():
    dropouts = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=32, **dropouts))


def of_causal(build):
    return Head(build, causal, shifted)


FUSED = {
    **{name: HEADS[name] for name in HEADS if name.startswith("masked lm")},
    **{name: HEADS[name] for name in ("pretraining", "causal lm", "vision-language", "mixture of experts")},
    **{name: HEADS[name] for name in ("T5", "BART", "Whisper", "vision encoder-decoder")},
    "Gemma2, soft-capped": of_causal(
        lambda: Gemma2ForCausalLM(Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=0.5))
    ),
    "Cohere, scaled": of_causal(lambda: CohereForCausalLM(CohereConfig(**LLAMA, logit_scale=3.0))),
    "Granite, divided": of_causal(lambda: GraniteForCausalLM(GraniteConfig(**LLAMA, logits_scaling=4.0))),
    # its class's name does not tell the Trainer that it shifts labels, so that shares of micro-batches are not exact
    "GPT-2, tied": Head(gpt2, causal, shifted, additive=False),
    "Llama, tied": of_causal(lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True))),
    "Qwen2": of_causal(lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA))),
    "Qwen2, tied": of_causal(lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA, tie_word_embeddings=True))),
    "masked lm, RoBERTa": Head(
        lambda: RobertaForMaskedLM(RobertaConfig(**SMALL, **STILL, max_position_embeddings=32, pad_token_id=0)),
        masked_lm,
        aligned,
    ),
    "head with a bias": of_causal(lambda: with_bias(LlamaForCausalLM(LlamaConfig(**LLAMA)))),
}
SERVED = [name for name in list_losses() if not get_spec(name).needs_logits]
FAMILIES = pytest.mark.parametrize("head", FUSED.values(), ids=FUSED)


def with_bias(model):
    model.lm_head = torch.nn.Linear(16, V)
    return model


def build(head):
    torch.manual_seed(0)
    return head.build(), head.batch(torch.Generator().manual_seed(1))


def trainer_of(model, folder, fused=True, data=None, **kwargs):
    defaults = dict(use_cpu=True, disable_tqdm=True, save_strategy="no", remove_unused_columns=False)
    args = MaxSupTrainingArguments(str(folder), fused_linear_loss=fused, **defaults | kwargs)
    return MaxSupTrainer(model, args, train_dataset=data, eval_dataset=data)


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


def check_equal(model, batch, folder, **kwargs):
    expected, reference = tiny.gradients(trainer_of(model, folder, fused=False, **kwargs), [batch])
    value, gradient = tiny.gradients(trainer_of(model, folder, **kwargs), [batch])
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6
    return gradient


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


def rows_to_learn(count=64, length=12):
    torch.manual_seed(0)
    ids = (torch.randint(3, V, (count, 1)) + torch.arange(length) * torch.randint(1, 4, (count, 1))) % V
    return [{"input_ids": row, "labels": row} for row in ids]


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
        command = [sys.executable, "-m", "maxsup_hf", "train", "language-modeling", *flags, *short.split()]
        command += ["--fused_linear_loss", fused, "--output_dir", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses.append([log[key] for log in history for key in ("loss", "eval_loss") if key in log])
    assert len(losses[0]) >= 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)


# ---- refused ----


def refused(model, folder, message, batch=None, error=ValueError, **kwargs):
    with pytest.raises(error, match=message):
        trainer = trainer_of(model, folder, data=rows_to_learn(8), **kwargs)
        if batch is None:
            trainer.train()
        else:
            tiny.gradients(trainer, [batch])
    assert all(p.grad is None for p in model.parameters())


def test_heads_without_an_output_embedding(tmp_path):
    refused(tiny.vit(), tmp_path, "but ViTForImageClassification has no output embedding")


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_peft_on_the_output_embedding(where, tmp_path):
    model = get_peft_model(tiny.llama(), LoraConfig(**{"target_modules": ["q_proj"]} | {where: ["lm_head"]}))
    refused(model, tmp_path, "has a peft .* as its output embedding.*do not put adapters or modules_to_save on")


def test_a_wrapped_forward(tmp_path):
    model = tiny.llama()
    model.lm_head.forward = model.lm_head.forward
    refused(model, tmp_path, "output embedding whose forward is wrapped")


class Quantised(torch.Tensor):
    """As torchao keeps weights: in a plain nn.Linear, as a tensor of a class of its own."""


def test_quantised_output_embeddings(tmp_path):
    model = tiny.llama()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().as_subclass(Quantised))
    refused(model, tmp_path, "but LlamaForCausalLM has an output embedding whose weight is a Quantised")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(40, 16, dtype=torch.int8), requires_grad=False)
    refused(model, tmp_path, "whose weight is a Parameter of torch.int8")


def test_output_embeddings_that_are_not_linear(tmp_path):
    model = tiny.llama()
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 40))
    refused(model, tmp_path, "but LlamaForCausalLM has a torch Sequential as its output embedding")


def test_soft_labels(tmp_path):
    model = tiny.llama()
    batch = {"input_ids": torch.randint(3, V, (2, 5)), "labels": torch.rand(2, 5, V).softmax(-1)}
    refused(model, tmp_path, "fused_linear_loss, asked for LlamaForCausalLM, does not support soft labels", batch)


@pytest.mark.parametrize("column", ["labels", "soft_labels"])
def test_soft_labels_in_a_data_set(column, tmp_path):
    rows = [{"input_ids": [3, 4], "labels": [3, 4]} | {column: [[0.5, 0.5], [0.1, 0.9]]}]
    trainer = trainer_of(tiny.llama(), tmp_path, data=datasets.Dataset.from_list(rows))
    with pytest.raises(
        ValueError, match="fused_linear_loss, asked for LlamaForCausalLM, cannot be combined with soft labels"
    ):
        trainer.train()


def test_mixup(tmp_path):
    trainer = trainer_of(tiny.llama(), tmp_path, data=rows_to_learn(8))
    trainer.data_collator = MixupCollator(num_classes=V)
    with pytest.raises(ValueError, match="cannot be combined with soft labels: leave out Mixup"):
        trainer.train()


def test_data_parallel_and_zero3(tmp_path):
    for name, value, message in (
        ("_n_gpu", 2, "cannot be combined with torch's DataParallel: start one process for each GPU"),
        ("hf_deepspeed_config", SimpleNamespace(is_zero3=lambda: True), "cannot be combined with DeepSpeed ZeRO-3"),
    ):
        trainer = trainer_of(tiny.llama(), tmp_path, data=rows_to_learn(8))
        trainer.check()
        setattr(trainer.args, name, value)
        with pytest.raises(ValueError, match=message):
            trainer.train()


@pytest.mark.parametrize("loss", [*sorted(set(list_losses()) - set(SERVED)), "maxsup+ls_regularization"])
def test_losses_that_need_logits(loss, tmp_path):
    with pytest.raises(ValueError, match="computes a loss from row statistics.*needs the logits themselves"):
        MaxSupTrainingArguments(str(tmp_path), use_cpu=True, loss=loss, fused_linear_loss=True)


def test_compiled_models(tmp_path, monkeypatch):
    refused(torch.compile(tiny.llama()), tmp_path, "cannot be combined with torch.compile")
    refused(tiny.llama(), tmp_path, "cannot be combined with torch.compile", torch_compile=True)
    in_place = tiny.llama()
    in_place.compile()
    refused(in_place, tmp_path, "asked for LlamaForCausalLM, cannot be combined with torch.compile")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")  # as accelerate launch --dynamo_backend does
    refused(tiny.llama(), tmp_path, "leave torch_compile and dynamo_backend out")


class Odd(LlamaForCausalLM):
    """What it does to its logits, and its cross-entropy, are set from outside."""

    change = staticmethod(lambda logits: logits)
    criterion = staticmethod(lambda z, y: torch.nn.functional.cross_entropy(z.reshape(-1, V), y.reshape(-1)))

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.change(self.lm_head(self.model(input_ids).last_hidden_state))
        return {"loss": self.criterion(logits, labels), "logits": logits}


def odd(**changed):
    model = Odd(LlamaConfig(**LLAMA))
    vars(model).update(changed)
    return model, causal(torch.Generator().manual_seed(1))


def test_an_odd_head_that_is_served(tmp_path):
    check_equal(*odd(change=lambda logits: -0.5 * logits[..., :V].float()), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits.softmax(-1), "reads 'softmax' of its logits"),
        (lambda logits: torch.sigmoid(logits), "applies sigmoid to its logits"),
        (lambda logits: logits[..., 1:], "selects some classes of its logits"),
        (lambda logits: logits * torch.ones(V), "multiplies its logits by a tensor"),
        (lambda logits: logits.tanh().tanh(), "applies tanh to its logits twice"),
        (lambda logits: 2 * logits + torch.ones(V), "adds something to its logits"),
        (lambda logits: logits - 1, "applies sub to its logits"),
    ],
)
def test_heads_that_need_their_logits(change, message, tmp_path):
    model, batch = odd(change=change)
    refused(model, tmp_path, f"fused_linear_loss cannot serve Odd, which {message}: leave fused_linear_loss out", batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": torch.ones(V)}, "applies class weights"),
        ({"reduction": "none"}, "needs the loss of each row"),
        (None, r"has the classes of its logits \(8, 9, 40\) in dimension 1"),
    ],
)
def test_cross_entropies_that_need_logits(options, message, tmp_path):
    def criterion(z, y):
        if options is None:
            return torch.nn.functional.cross_entropy(z, y)
        return torch.nn.CrossEntropyLoss(**options)(z.view(-1, V), y.view(-1)).mean()

    model, batch = odd(criterion=criterion)
    refused(model, tmp_path, f"fused_linear_loss cannot serve Odd, which {message}", batch)


def test_a_loss_that_does_not_come_from_the_output_embedding(tmp_path):
    class ByHand(LlamaForCausalLM):
        def forward(self, input_ids, labels=None, **kwargs):
            logits = self.model(input_ids).last_hidden_state @ self.lm_head.weight.T
            return {"loss": torch.nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1)), "logits": logits}

    model, batch = ByHand(LlamaConfig(**LLAMA)), causal(torch.Generator())
    refused(model, tmp_path, "cannot serve ByHand, whose loss does not come from what its output embedding returns", batch)


def test_an_output_embedding_that_is_gone_before_the_loss(tmp_path):
    """As after the forward of a layer that ZeRO-3 or FSDP has sharded by itself."""

    def change(logits):
        model.lm_head.weight.untyped_storage().resize_(0)
        return logits

    model, batch = odd(change=change)
    refused(model, tmp_path, "cannot serve Odd, which has an output embedding that is sharded again", batch)
