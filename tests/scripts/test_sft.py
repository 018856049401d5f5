"""Supervised fine-tuning as users start it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs TRL (pip install -e '.[sft]')")

from transformers import AutoModelForCausalLM, AutoTokenizer

from maxsup_hf import cli
from maxsup_hf.scripts import sft
from tests.scripts.conftest import results, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--save_strategy", "no", "--eval_strategy", "no"]
CHATS = {
    "messages": [
        [{"role": "user", "content": f"What is {i} + 1?"}, {"role": "assistant", "content": f"It is {i + 1}."}]
        for i in range(24)
    ]
}


def test_without_data():
    sft.main([*SHORT, "--loss", "maxsup", "--max_train_samples", "40", "--max_eval_samples", "8"])
    found = results("outputs/sft")
    assert found["eval_perplexity"] > 1 and found["train_samples"] == 40
    record = json.loads(Path("outputs/sft/run.json").read_text(encoding="utf-8"))
    assert record["loss"]["name"] == "maxsup" and record["tasks"] == "text-generation"
    assert AutoModelForCausalLM.from_pretrained("outputs/sft").config.model_type == "llama"


def test_only_the_answers_of_chats_are_trained_with_the_template_that_is_made():
    write("chats.jsonl", CHATS)
    argv = [*SHORT, "--train_file", "chats.jsonl", "--assistant_only_loss", "true", "--output_dir", "out"]
    job = sft.prepare(argv)
    row = job.trainer.train_dataset[0]
    trained = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    answer = job.trainer.processing_class.decode(trained)
    assert "It is" in answer and "What is" not in answer


def test_chats_with_a_lora_adapter_and_a_test_set():
    write("chats.jsonl", CHATS)
    files = ["--train_file", "chats.jsonl", "--test_file", "chats.jsonl", "--output_dir", "base"]
    sft.main([*SHORT, *files])
    assert "assistant: " in AutoTokenizer.from_pretrained("base").chat_template
    files[-1] = "adapter"
    lora = ["--model_name_or_path", "base", "--use_peft", "true", "--lora_r", "4"]
    cli.main(["train", "sft", *SHORT, *files, *lora, "--do_predict", "true", "--predictions_file", "said.jsonl"])
    said = [json.loads(line) for line in Path("said.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(said) == 24 and said[3]["text"].endswith("What is 3 + 1?[SEP]\nassistant: ") and "prediction" in said[3]
    assert json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
    assert results("adapter")["test_perplexity"] == pytest.approx(results("base")["test_perplexity"], rel=0.2)


def test_rows_without_an_answer_within_the_length_are_counted_in_every_split(caplog):
    long, short = ({"content": "word " * n + "?", "role": "user"} for n in (200, 1))
    answer = {"role": "assistant", "content": "yes"}
    write("train.jsonl", {"messages": [[short, answer]] * 20 + [[long, answer]] * 5})
    write("test.jsonl", {"messages": [[short, answer]] * 3 + [[long, answer]] * 2})
    files = ["--train_file", "train.jsonl", "--validation_file", "test.jsonl", "--test_file", "test.jsonl"]
    with caplog.at_level("WARNING", "maxsup_hf"):
        job = sft.prepare([*SHORT, *files, "--assistant_only_loss", "true", "--max_length", "64", "--output_dir", "out"])
    said = "\n".join(record.getMessage() for record in caplog.records)
    for split, dropped, rows in (("train", 5, 25), ("validation", 2, 5), ("test", 2, 5)):
        assert f"{dropped} of the {rows} rows of the {split} data are not used" in said
    assert len(job.test_dataset) == 3
