"""`fused_linear_loss` of the Trainer against the Trainer without it."""

from pathlib import Path

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
)

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.heads import HEADS, LLAMA, Head, V, causal, shifted
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
    "tied": of_causal(lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True))),
    "head with a bias": of_causal(lambda: with_bias(LlamaForCausalLM(LlamaConfig(**LLAMA)))),
}
FAMILIES = pytest.mark.parametrize("head", FUSED.values(), ids=FUSED)


def with_bias(model):
    model.lm_head = torch.nn.Linear(16, V)
    return model


def build(head):
    torch.manual_seed(0)
    return head.build(), head.batch(torch.Generator().manual_seed(1))


def trainer_of(model, folder, fused=True, **kwargs):
    defaults = dict(use_cpu=True, disable_tqdm=True, save_strategy="no", remove_unused_columns=False)
    return MaxSupTrainer(model, MaxSupTrainingArguments(str(folder), fused_linear_loss=fused, **defaults | kwargs))


class Sizes(TorchDispatchMode):
    """How many rows of logits each tensor made inside could hold."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == V and tensor.is_floating_point():
                self.rows.append(tensor.numel() // V)
        return result


@FAMILIES
@pytest.mark.parametrize("loss", ["maxsup", "confidence_penalty", "label_smoothing+z_loss"])
def test_equals_the_trainer_without_it(head, loss, tmp_path, monkeypatch):
    monkeypatch.setattr("maxsup_hf.kernels.linear.ROWS", 5)
    model, batch = build(head)
    expected, reference = tiny.gradients(trainer_of(model, tmp_path, fused=False, loss=loss), [batch])
    value, gradient = tiny.gradients(trainer_of(model, tmp_path, loss=loss), [batch])
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6
    assert "forward" not in vars(model.get_output_embeddings())


@FAMILIES
def test_logits_are_never_made(head, tmp_path, monkeypatch):
    monkeypatch.setattr("maxsup_hf.kernels.linear.ROWS", 5)
    model, batch = build(head)
    outputs = model(**batch)
    rows = getattr(outputs, "prediction_logits", outputs.get("logits")).numel() // V
    for fused in (False, True):
        with Sizes() as sizes:
            tiny.gradients(trainer_of(model, tmp_path, fused=fused), [batch])
        assert (rows in sizes.rows) is not fused


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
    expected, reference = tiny.gradients(trainer_of(model, tmp_path, fused=False), [batch])
    value, gradient = tiny.gradients(trainer_of(model, tmp_path), [batch])
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6
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


def test_loss_curves(tmp_path):
    """200 steps of a tiny causal language model."""
    curves = []
    for fused in (False, True):
        torch.manual_seed(0)
        ids = torch.randint(3, V, (64, 1)) + torch.arange(12) * torch.randint(1, 4, (64, 1))
        rows = [{"input_ids": row % V, "labels": row % V} for row in ids]
        trainer = trainer_of(
            tiny.llama(),
            tmp_path,
            fused,
            max_steps=200,
            logging_steps=1,
            learning_rate=3e-3,
            train_sampling_strategy="sequential",
        )
        trainer.train_dataset = rows
        trainer.train()
        curves.append(torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log]))
    assert len(curves[0]) == 200 and curves[0][-20:].mean() < 0.6 * curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=1e-4)


# ---- refused ----


def refused(model, folder, message, batch=None, error=ValueError, **kwargs):
    with pytest.raises(error, match=message):
        trainer = trainer_of(model, folder, **kwargs)
        if batch is None:
            trainer.train_dataset = tiny.rows(causal(torch.Generator().manual_seed(0)))
            trainer.train()
        else:
            tiny.gradients(trainer, [batch])
    assert all(p.grad is None for p in model.parameters())


def test_heads_without_an_output_embedding(tmp_path):
    refused(tiny.vit(), tmp_path, "but ViTForImageClassification has no output embedding")


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_peft_on_the_output_embedding(where, tmp_path):
    model = get_peft_model(tiny.llama(), LoraConfig(**{"target_modules": ["q_proj"]} | {where: ["lm_head"]}))
    refused(model, tmp_path, "has a peft .* as its output embedding.*keep LoRA and modules_to_save off")


def test_a_wrapped_forward(tmp_path):
    model = tiny.llama()
    model.lm_head.forward = model.lm_head.forward
    refused(model, tmp_path, "output embedding whose forward is wrapped")


def test_soft_labels(tmp_path):
    model = tiny.llama()
    batch = {"input_ids": torch.randint(3, V, (2, 5)), "labels": torch.rand(2, 5, V).softmax(-1)}
    refused(model, tmp_path, "fused_linear_loss knows no soft labels", batch)


@pytest.mark.parametrize("loss", ["logit_norm", "maxsup+ls_regularization"])
def test_losses_that_need_logits(loss, tmp_path):
    with pytest.raises(ValueError, match="fused_linear_loss computes a loss from row numbers.*needs the logits themselves"):
        MaxSupTrainingArguments(str(tmp_path), use_cpu=True, loss=loss, fused_linear_loss=True)


def test_compiled_models(tmp_path):
    refused(torch.compile(tiny.llama()), tmp_path, "cannot be combined with torch.compile")
    refused(tiny.llama(), tmp_path, "cannot be combined with torch.compile", torch_compile=True)


class Odd(LlamaForCausalLM):
    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        logits = self.change(logits)
        return {"loss": torch.nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1)), "logits": logits}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits.softmax(-1), "cannot serve Odd, which asks its logits for 'softmax'"),
        (lambda logits: torch.sigmoid(logits), "cannot serve Odd, which applies sigmoid to its logits"),
        (lambda logits: logits[..., :V], None),
        (lambda logits: logits[..., 1:], "cannot serve Odd, which takes some classes out of its logits"),
        (lambda logits: logits * torch.ones(V), "cannot serve Odd, which multiplies its logits by a tensor"),
        (lambda logits: logits.tanh().tanh(), "cannot serve Odd, which applies tanh to its logits twice"),
        (lambda logits: 2 * logits + torch.ones(V), "cannot serve Odd, which adds something to its logits"),
    ],
)
def test_heads_that_need_their_logits(change, message, tmp_path):
    torch.manual_seed(0)
    model = Odd(LlamaConfig(**LLAMA))
    model.change = change
    batch = causal(torch.Generator().manual_seed(1))
    if message is None:
        tiny.gradients(trainer_of(model, tmp_path), [batch])
    else:
        refused(model, tmp_path, message, batch)


def test_an_output_embedding_that_is_gone_before_the_loss(tmp_path):
    """As after the forward of a layer that ZeRO-3 or FSDP has sharded by itself."""
    model = Odd(LlamaConfig(**LLAMA))

    def change(logits):
        model.lm_head.weight.untyped_storage().resize_(0)
        return logits

    model.change = change
    refused(
        model, tmp_path, "cannot serve Odd, which has an output embedding that is sharded again", causal(torch.Generator())
    )
