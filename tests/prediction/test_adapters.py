"""`maxsup-hf predict` with adapters, whose base model is found, or named."""

import csv

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from maxsup_hf import cli
from maxsup_hf.scripts.common.tokenizers import train_tokenizer
from tests.scripts.conftest import TEXTS, write

peft = pytest.importorskip("peft")
SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def adapted(model, task_type):
    """A LoRA adapter with random weights on a saved model; returns the model with it."""
    model.save_pretrained("base")
    train_tokenizer(TEXTS, 300, token_types=task_type == "SEQ_CLS").save_pretrained("base")
    classes = {"num_labels": 3, "ignore_mismatched_sizes": True} if task_type == "SEQ_CLS" else {}
    loaded = type(model).from_pretrained("base", **classes)
    config = peft.LoraConfig(task_type=task_type, r=2, init_lora_weights=False)
    with_adapter = peft.get_peft_model(loaded, config).eval()
    with torch.no_grad():
        for name, parameter in with_adapter.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    with_adapter.save_pretrained("adapter")
    return with_adapter


def predict(*flags):
    cli.main(["predict", "adapter", "--test_file", write("new.csv", {"text": TEXTS}), "--overwrite", *flags])
    with open("predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_classifier(tmp_path):
    """The base model has two classes, and the head of the adapter three; their names are in a config beside it."""
    torch.manual_seed(0)
    model = adapted(BertForSequenceClassification(BertConfig(**SMALL, initializer_range=1.0)), "SEQ_CLS")
    inputs = AutoTokenizer.from_pretrained("base")(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).logits.softmax(-1)
    write("adapter/model-notes.csv", {"text": ["no weights"]})
    check_classes(predict("--top_k", "3"), expected, ["LABEL_0", "LABEL_1", "LABEL_2"])
    model.config.id2label = {0: "good", 1: "bad", 2: "ugly"}
    model.config.save_pretrained("adapter")
    check_classes(predict("--top_k", "3"), expected, ["good", "bad", "ugly"])


def check_classes(rows, expected, names):
    for row, probabilities in zip(rows, expected.tolist(), strict=True):
        found = {row[f"prediction{place}"]: float(row[f"probability{place}"]) for place in ("", "_2", "_3")}
        assert found == pytest.approx(dict(zip(names, probabilities, strict=True)), abs=1e-5)


def test_a_language_model_that_has_moved(tmp_path, capsys):
    torch.manual_seed(0)
    model = adapted(LlamaForCausalLM(LlamaConfig(**SMALL)), "CAUSAL_LM")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(SystemExit):
        predict()
    assert "base_model: 'base' could not be loaded" in capsys.readouterr().err.splitlines()[-1]
    tokenizer = AutoTokenizer.from_pretrained("moved")
    expected = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    rows = predict("--base_model", "moved", "--max_new_tokens", "5", "--batch_size", "1")
    assert [row["prediction"] for row in rows] == expected
