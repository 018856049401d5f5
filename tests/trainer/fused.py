"""Heads that `fused_linear_loss` supports, and trainings with it."""

import pytest
import torch
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
)

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, list_losses
from maxsup_hf.losses import get_spec
from tests import tiny
from tests.heads import HEADS, LLAMA, SMALL, STILL, Head, V, aligned, causal, masked_lm, shifted


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


def check_equal(model, batch, folder, **kwargs):
    expected, reference = tiny.gradients(trainer_of(model, folder, fused=False, **kwargs), [batch])
    value, gradient = tiny.gradients(trainer_of(model, folder, **kwargs), [batch])
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6
    return gradient


def rows_to_learn(count=64, length=12):
    torch.manual_seed(0)
    ids = (torch.randint(3, V, (count, 1)) + torch.arange(length) * torch.randint(1, 4, (count, 1))) % V
    return [{"input_ids": row, "labels": row} for row in ids]
