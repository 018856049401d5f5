"""The card of an adapter: ours, without the path of its base model, with code that runs."""

import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.hub.card import card_for_repository, write_card
from tests.hub.cards import leave, read

peft = pytest.importorskip("peft", reason="adapters need PEFT")
WORDS = ["<unk>", "</s>", "Once", "upon", "a", "time", "cat", "dog"]
TINY = {
    "vocab_size": len(WORDS), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module", params=["CAUSAL_LM", "SEQ_CLS", None])
def saved(request, tmp_path_factory):
    """An adapter on a base model of a local folder, saved, described, and saved again, as the scripts do."""
    folder = tmp_path_factory.mktemp("secret-place")
    torch.manual_seed(0)
    rows = [{"input_ids": torch.tensor([2, 3, 4, 5]), "labels": torch.tensor([2, 3, 4, 5])} for _ in range(4)]
    if request.param == "SEQ_CLS":
        config = BertConfig(**TINY, num_labels=3)
        BertForSequenceClassification(config).save_pretrained(folder / "base")
        model = BertForSequenceClassification.from_pretrained(folder / "base")
        layers, rows = ["query"], [row | {"labels": 1} for row in rows]
    else:
        config = LlamaConfig(**TINY, eos_token_id=1)
        LlamaForCausalLM(config).save_pretrained(folder / "base")
        model, layers = LlamaForCausalLM.from_pretrained(folder / "base"), ["q_proj"]
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="</s>")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=layers, task_type=request.param))
    args = MaxSupTrainingArguments(str(folder / "adapter"), max_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = MaxSupTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    for _ in range(2):
        trainer.save_model()
        trainer.create_model_card()
    model.save_pretrained(folder / "checkpoint")
    return folder / "adapter"


def test_nothing_of_pefts_card_is_left(saved):
    found, text = read(saved)
    assert "[More Information Needed]" not in text and "Framework versions" not in text and text.count("\n# ") == 1
    assert found["library_name"] == "peft" and {"maxsup", "lora"} <= set(found["tags"])
    assert "LoRA adapter" in text and "with the loss `maxsup`" in text


def test_the_local_base_model_is_not_named(saved):
    found, text = read(saved)
    assert "secret-place" not in text + str(found) and "base_model" not in found
    assert "a local model that is not on the Hub" in text


def test_the_code_runs(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    (code,) = re.findall(r"```python\n(.*?)```", read(saved)[1], re.DOTALL)
    exec(code, {})


def test_a_checkpoint_can_be_pushed(saved):
    """PEFT writes a card into each checkpoint, which has no record."""
    checkpoint = saved.parent / "checkpoint"
    assert str(saved.parent) in (checkpoint / "README.md").read_text()
    card_for_repository(checkpoint, "me/new")
    found, text = read(checkpoint)
    assert "base_model" not in found and "lora" in found["tags"] and str(saved.parent) not in str(found) and not text.strip()


def test_an_adapter_of_a_model_that_was_not_saved_has_no_code(tmp_path):
    model = {"class": "LlamaForCausalLM", "parameters": 9, "finetuned": False, "adapter": True, "adapter_task": "CAUSAL_LM"}
    folder = leave(tmp_path / "run", model=model)
    write_card(folder)
    assert "cannot be used without its base model" in read(folder)[1] and "```python" not in read(folder)[1]
