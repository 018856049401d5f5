"""Text classification, from input to saved model."""

from types import SimpleNamespace

import datasets
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, pipeline

from maxsup_hf.scripts import text_classification
from maxsup_hf.scripts.common.tokenizers import max_length, train_tokenizer
from tests.scripts.conftest import MOODS, TEXTS, results, texts, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "20", "--disable_tqdm", "true"]


def run(*argv):
    text_classification.main([*argv, *SHORT])


def test_without_data(capsys):
    run()
    folder = "outputs/text-classification"
    assert capsys.readouterr().out.strip().endswith(f"saved to {folder}")
    assert {"train_loss", "eval_loss", "eval_accuracy", "eval_nll", "eval_ece"} <= set(results(folder))
    answers = pipeline("text-classification", model=folder, top_k=None)(["Deutschland", "Zjednoczone Królestwo"])
    assert all(len(answer) == 20 and abs(sum(a["score"] for a in answer) - 1) < 1e-4 for answer in answers)
    assert {"pl", "de"} <= {a["label"] for a in answers[0]}


@pytest.mark.parametrize("extension", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_files_with_a_test_set(extension):
    train, test = texts(f"train.{extension}"), texts(f"test.{extension}", MOODS[::-1][:3], TEXTS[::-1][:3])
    job = text_classification.prepare(["--train_file", train, "--test_file", test, "--output_dir", "run"])
    assert job.trainer.model.config.id2label == {0: "bad", 1: "good"}
    assert list(job.test_dataset["labels"]) == [0, 0, 0]
    assert len(job.trainer.train_dataset) + len(job.trainer.eval_dataset) == 8


def test_learns_from_a_file_and_tests_at_the_end():
    argv = ["--train_file", texts(), "--test_file", texts("test.jsonl"), "--validation_file", texts("validation.parquet")]
    only_at_the_end = ["--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]
    text_classification.main([*argv, "--output_dir", "run", "--num_train_epochs", "20", *only_at_the_end])
    found = results("run")
    assert found["test_accuracy"] == found["eval_accuracy"] == 1.0
    assert found["test_nll"] == pytest.approx(found["test_loss"], rel=1e-4)
    assert found["test_samples"] == 8
    answers = pipeline("text-classification", model="run")(TEXTS)
    assert [answer["label"] for answer in answers] == MOODS


def test_pairs():
    write("train.csv", {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": MOODS})
    argv = ["--train_file", "train.csv", "--output_dir", "run"]
    with pytest.raises(ValueError, match="could be any of premise, hypothesis|text_column_name"):
        text_classification.prepare([*argv[:2], "--text_column_name", "premise, hypotesis"])
    run(*argv, "--text_column_name", "premise, hypothesis")
    tokenizer = AutoTokenizer.from_pretrained("run")
    encoded = tokenizer("good day", "so bad")
    assert encoded["token_type_ids"] == sorted(encoded["token_type_ids"]) and encoded["token_type_ids"][-1] == 1
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True).split() == ["good", "day", "so", "bad"]


def test_fine_tuning_keeps_a_head_of_the_same_classes_and_its_tokenizer():
    train = texts()
    run("--train_file", train, "--output_dir", "first")
    first = AutoModelForSequenceClassification.from_pretrained("first")
    job = text_classification.prepare(["--train_file", train, "--model_name_or_path", "first", "--output_dir", "x"])
    assert (job.trainer.model.classifier.weight == first.classifier.weight).all()
    assert job.trainer.processing_class.get_vocab() == AutoTokenizer.from_pretrained("first").get_vocab()
    three = texts("three.csv", ["a", "b", "c", "a"] * 2)
    job = text_classification.prepare(["--train_file", three, "--model_name_or_path", "first", "--output_dir", "x"])
    assert job.trainer.model.config.num_labels == 3
    embeddings = job.trainer.model.bert.embeddings.word_embeddings.weight
    assert (embeddings == first.bert.embeddings.word_embeddings.weight).all()


def test_multi_label_and_half_precision_checkpoints_become_classifiers_in_float32():
    train = texts()
    run("--train_file", train, "--output_dir", "first")
    model = AutoModelForSequenceClassification.from_pretrained("first").half()
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained("first")
    job = text_classification.prepare(["--train_file", train, "--model_name_or_path", "first", "--output_dir", "x"])
    assert job.trainer.model.config.problem_type == "single_label_classification"
    assert {str(p.dtype) for p in job.trainer.model.parameters()} == {"torch.float32"}


def test_config_of_the_user_without_a_tokenizer():
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, pad_token_id=7,
    )  # fmt: skip
    config.save_pretrained("bert")
    train = texts()
    for source in ("bert", "bert/config.json"):
        job = text_classification.prepare(["--train_file", train, "--config_name", source, "--output_dir", "x"])
        assert len(job.trainer.processing_class) <= 300
        assert job.trainer.model.config.pad_token_id == job.trainer.processing_class.pad_token_id
    with pytest.raises(ValueError, match="more than the 32 that the model takes"):
        text_classification.prepare(["--train_file", train, "--config_name", "bert", "--max_seq_length", "33"])
    config.vocab_size = 100
    config.save_pretrained("bert")
    with pytest.raises(ValueError, match="vocab_size must be at least 259"):
        text_classification.prepare(["--train_file", train, "--config_name", "bert"])


def test_long_texts_are_cut():
    train = texts(texts=["word " * 50] * 8)
    job = text_classification.prepare(["--train_file", train, "--max_seq_length", "9", "--output_dir", "x"])
    assert {len(ids) for ids in job.trainer.train_dataset["input_ids"]} == {9}


@pytest.mark.parametrize(
    ("stated", "positions", "asked", "length"),
    [(128, 512, None, 128), (10**30, 512, None, 512), (10**30, None, None, 512), (10**30, None, 2048, 2048), (99, 9, 5, 5)],
)
def test_length_limit(stated, positions, asked, length):
    args, config, tokenizer = (
        SimpleNamespace(max_seq_length=asked),
        SimpleNamespace(),
        SimpleNamespace(model_max_length=stated, num_special_tokens_to_add=lambda: 2),
    )
    if positions:
        config.max_position_embeddings = positions
    assert max_length(args, config, tokenizer) == length


def test_tokenizer_knows_every_text():
    tokenizer = train_tokenizer(["some words"], 300)
    for text in ("Ünïcödé", "日本", "🙂", "a\nb"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_hub_style_dataset_leaves_out_a_test_split_without_labels():
    rows = {"text": TEXTS, "label": [0, 1] * 4}
    splits = {"train": rows, "validation": rows, "test": {**rows, "label": [-1] * 8}}
    datasets.DatasetDict({name: datasets.Dataset.from_dict(split) for name, split in splits.items()}).save_to_disk("mine")
    job = text_classification.prepare(["--dataset_name", "mine", "--output_dir", "x"])
    assert job.test_dataset is None and len(job.trainer.train_dataset) == 8


def test_errors_after_the_start_keep_their_traceback(monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr("maxsup_hf.scripts.text_classification.MaxSupTrainer.train", broken)
    with pytest.raises(ValueError, match="a bug"):
        text_classification.main(["--train_file", texts(), "--output_dir", "x"])
