"""`class T(MaxSupMixin, SFTTrainer)` as it stands, against a loss made by hand of the logits of the collated batch."""

import copy
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from maxsup_hf import MaxSupArgumentsMixin, MaxSupMixin
from tests import tiny

trl = pytest.importorskip("trl", reason="needs TRL, of the extra 'examples'")
peft = pytest.importorskip("peft", reason="needs PEFT, of the extra 'examples'")
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} {% endfor %}"
)
WORDS = ["<pad>", "<s>", "</s>", "user", "assistant", *(f"w{i}" for i in range(35))]


@dataclass
class Arguments(MaxSupArgumentsMixin, trl.SFTConfig):
    pass


class Mixed(MaxSupMixin, trl.SFTTrainer):
    pass


def tokenizer():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = TEMPLATE
    return made


def said(i, n):
    return " ".join(f"w{(i + j) % 35}" for j in range(n))


def texts():
    return [{"text": said(i, 2 + 2 * i)} for i in range(8)]


def completions():
    return [{"prompt": f"{said(i, 2)} ", "completion": said(i, 2 + i)} for i in range(8)]


def chats():
    return [
        {"messages": [{"role": "user", "content": said(i, 3)}, {"role": "assistant", "content": said(i, 1 + i)}]}
        for i in range(8)
    ]


MODES = {
    "texts": (texts, {}),
    "nll": (texts, {"loss_type": "nll"}),
    "completion-only": (completions, {}),
    "assistant-only": (chats, {"assistant_only_loss": True}),
    "padding-free": (texts, {"padding_free": True, "max_length": None}),
    "packing": (texts, {"packing": True, "max_length": 16}),
    "peft": (texts, {}),
    "sum of losses": (texts, {"loss": "maxsup+z_loss", "loss_kwargs": None}),
}


def trainer(mode, folder, sizes=(8, 1), **kwargs):
    rows, options = MODES[mode]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    defaults = dict(
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True, save_strategy="no",
        logging_steps=1, max_steps=1, optim="sgd", learning_rate=0.0, train_sampling_strategy="sequential",
        per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1],
        loss_kwargs={"alpha": 0.1, "alpha_end": None},
    )  # fmt: skip
    lora = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False) if mode == "peft" else None
    return Mixed(
        model, Arguments(str(folder), **defaults | options | kwargs), train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer(), peft_config=lora,
    )  # fmt: skip


def gradient(made, batches):
    return tiny.gradients(made, [dict(batch) for batch in batches])


@pytest.mark.parametrize("mode", MODES)
def test_is_the_loss_of_the_logits(mode, tmp_path):
    made = trainer(mode, tmp_path)
    (batch,) = list(made.get_train_dataloader())
    value, found = gradient(made, [batch])
    made.model.zero_grad()
    inputs = {key: x for key, x in batch.items() if key != "labels"}
    logits, labels = made.model(**inputs, use_cache=False).logits[:, :-1], batch["labels"][:, 1:]
    kept = labels != -100
    assert 0 < kept.sum() < labels.numel() or mode in ("padding-free", "packing")
    z = logits[kept]
    expected = cross_entropy(z, labels[kept]) + 0.1 * (z.amax(-1) - z.mean(-1)).mean()
    if mode == "sum of losses":
        expected = expected + 1e-4 * z.logsumexp(-1).square().mean()
    expected.backward()
    reference = {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert tiny.relative_error(found, reference) <= 1e-6


@pytest.mark.parametrize("mode", ["texts", "completion-only", "assistant-only", "padding-free"])
@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
def test_the_step_does_not_depend_on_the_cut(mode, fused, tmp_path):
    _, reference = gradient(whole := trainer(mode, tmp_path), list(whole.get_train_dataloader()))
    for sizes in ((2, 4), (1, 8)):
        made = trainer(mode, tmp_path, sizes, fused_linear_loss=fused)
        _, found = gradient(made, list(made.get_train_dataloader()))
        assert tiny.relative_error(found, reference) <= 1e-6


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
def test_logs_are_trls_and_ours(fused, tmp_path):
    made = trainer("sum of losses", tmp_path, fused_linear_loss=fused)
    made.train()
    log = made.state.log_history[0]
    assert log["train_cross_entropy"] + log["train_penalty"] == pytest.approx(log["loss"], abs=2e-4)
    parts = log["train_penalty_maxsup"] + log["train_penalty_z_loss"]
    assert log["train_penalty_maxsup"] > 0 and parts == pytest.approx(log["train_penalty"], rel=1e-4)
    assert log["num_tokens"] == sum(2 + 2 * i for i in range(8)) + 8  # each ends with </s>
    if fused:  # there are no logits
        assert "entropy" not in log and "mean_token_accuracy" not in log
        return
    with torch.no_grad():
        (batch,) = list(made.get_train_dataloader())
        logits = made.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    q = logits[kept].softmax(-1)
    assert log["entropy"] == pytest.approx(-(q * q.log()).sum(-1).mean().item(), rel=1e-4)
    right = (logits[kept].argmax(-1) == labels[kept]).float().mean().item()
    assert log["mean_token_accuracy"] == pytest.approx(right, abs=1e-4)


def test_evaluation_is_plain_cross_entropy(tmp_path):
    made = trainer("completion-only", tmp_path)
    made.train()
    plain = made.state.log_history[0]["train_cross_entropy"]
    assert made.evaluate(made.train_dataset)["eval_loss"] == pytest.approx(plain, rel=1e-4)


def test_another_loss_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match="loss_type='dft' of SFTConfig and loss='maxsup' are two losses"):
        trainer("texts", tmp_path, loss_type="dft")


@pytest.mark.parametrize("name", ["DPO", "Reward"])
def test_trainers_without_classes_are_refused(name, tmp_path):
    config = dataclass(type("Config", (MaxSupArgumentsMixin, getattr(trl, f"{name}Config")), {}))
    mixed = type(f"{name}Mixed", (MaxSupMixin, getattr(trl, f"{name}Trainer")), {})
    rows = [{"prompt": "w1 w2 ", "chosen": said(i, 3), "rejected": said(i, 2)} for i in range(4)]
    model = trainer("texts", tmp_path).model
    if name == "Reward":
        from transformers import LlamaForSequenceClassification

        model = LlamaForSequenceClassification(LlamaConfig(**model.config.to_diff_dict() | {"num_labels": 1}))
    args = config(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_steps=1, gradient_checkpointing=False, save_strategy="no"
    )
    reference = {"ref_model": copy.deepcopy(model)} if name == "DPO" else {}
    made = mixed(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(), **reference)
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"{name}Mixed trains on the loss of TRL's {name}Trainer"):
        made.train()
    assert all(torch.equal(before[key], value) for key, value in made.model.state_dict().items())
