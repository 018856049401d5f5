"""Token classification, from input to saved model."""

import datasets
import numpy as np
import pytest
from transformers import EvalPrediction, PreTrainedTokenizerFast, RobertaConfig, RobertaForTokenClassification, pipeline

from maxsup_hf.data.builtin_names import TAGS
from maxsup_hf.scripts import token_classification
from maxsup_hf.scripts.common.tokenizers import train_tokenizer
from maxsup_hf.scripts.token_classification import TagMetrics, prepare
from tests.scripts.conftest import results, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "20", "--disable_tqdm", "true"]
TOKENS = [["Ann", "met", "Bob"], ["Bob", "left"], ["Paris", "saw", "Ann", "Lee"], ["all", "left", "Paris"]] * 2
TAGGED = [["B-PER", "O", "B-PER"], ["B-PER", "O"], ["B-LOC", "O", "B-PER", "I-PER"], ["O", "O", "B-LOC"]] * 2


def sentences(name="train.jsonl", tokens=TOKENS, tags=TAGGED, **columns):
    return write(name, {"tokens": tokens, "tags": tags, **columns})


def run(*argv):
    token_classification.main([*argv, *SHORT])


def test_without_data(capsys):
    run("--max_train_samples", "500")
    folder = "outputs/token-classification"
    assert capsys.readouterr().out.strip().endswith(f"saved to {folder}")
    names = ("loss", "accuracy", "nll", "ece", "precision", "recall", "f1")
    assert {f"eval_{name}" for name in names} <= set(results(folder))
    found = pipeline("token-classification", model=folder)("Schweden, Zulu und Euro")
    assert {entity["entity"] for entity in found} <= set(TAGS)


@pytest.mark.parametrize("extension", ["json", "jsonl", "parquet"])
def test_files_with_a_test_set(extension):
    train, test = sentences(f"train.{extension}"), sentences(f"test.{extension}", TOKENS[:2], TAGGED[:2])
    job = prepare(["--train_file", train, "--test_file", test, "--output_dir", "run"])
    assert list(job.trainer.model.config.id2label.values()) == ["B-LOC", "B-PER", "I-PER", "O"]
    assert len(job.test_dataset) == 2 and len(job.trainer.train_dataset) + len(job.trainer.eval_dataset) == 8
    assert set(job.test_dataset.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_learns_from_a_file():
    files = ["--train_file", sentences(), "--validation_file", sentences("validation.jsonl")]
    only_at_the_end = ["--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]
    token_classification.main([*files, "--output_dir", "run", "--num_train_epochs", "30", *only_at_the_end])
    found = results("run")
    assert found["eval_accuracy"] == found["eval_f1"] == 1.0
    with open("run/per_class.csv", encoding="utf-8") as file:
        lines = file.read().split()
    assert lines == [
        "split,name,support,precision,recall,f1",
        "validation,LOC,4,1.0,1.0,1.0",
        "validation,PER,8,1.0,1.0,1.0",
    ]
    assert found["eval_nll"] == pytest.approx(found["eval_loss"], rel=1e-4)
    entities = pipeline("token-classification", model="run", aggregation_strategy="simple")("Paris saw Ann Lee")
    assert [entity["entity_group"] for entity in entities] == ["LOC", "PER"]


def test_the_first_token_of_a_word_has_its_label():
    job = prepare(["--train_file", sentences(), "--validation_file", sentences("validation.jsonl"), "--output_dir", "x"])
    tokenizer, names = job.trainer.processing_class, job.trainer.model.config.id2label
    for row, words, tags in zip(job.trainer.eval_dataset, TOKENS, TAGGED, strict=True):
        labelled = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert [names[row["labels"][i]] for i in labelled] == tags
        for word, first, behind in zip(words, labelled, [*labelled[1:], len(row["labels"]) - 1], strict=True):
            assert tokenizer.decode(row["input_ids"][first:behind]).strip() == word


def test_long_sentences_are_cut_and_the_loss_of_words_is_told(caplog):
    train = sentences(tokens=[["word"] * 50] * 4, tags=[["O", "X"] * 25] * 4)
    job = prepare(["--train_file", train, "--max_seq_length", "9", "--output_dir", "x"])
    assert {len(labels) for labels in job.trainer.train_dataset["labels"]} == {9}
    assert "of the 150 words of the train data have no token" in caplog.text
    with pytest.raises(ValueError, match="max_seq_length: no word is left in texts of 2 tokens"):
        prepare(["--train_file", train, "--max_seq_length", "2"])


def test_words_of_a_tokenizer_that_knows_words_by_the_space_before_them():
    backend = train_tokenizer(["met met met Ann Ann Ann"], 270, token_types=False).backend_tokenizer
    backend.pre_tokenizer.add_prefix_space = False
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    RobertaForTokenClassification(config).save_pretrained("roberta")
    tokenizer.save_pretrained("roberta")
    job = prepare(["--train_file", sentences(), "--model_name_or_path", "roberta", "--output_dir", "x"])
    assert job.trainer.model.config.num_labels == 4
    tokens = job.trainer.processing_class.convert_ids_to_tokens(job.trainer.train_dataset[0]["input_ids"])
    assert tokens[1].startswith("Ġ"), "the first word looks like any other"


def test_tags_that_are_numbers_or_classes_without_entities():
    classes = datasets.List(datasets.ClassLabel(names=["NOUN", "VERB", "X"]))
    rows = datasets.Dataset.from_dict({"id": ["a"] * 8, "words": TOKENS, "pos": [[0] * len(row) for row in TOKENS]})
    rows = rows.map(lambda row: {"pos": [i % 2 for i in range(len(row["pos"]))]}).cast_column("pos", classes)
    datasets.DatasetDict(train=rows).save_to_disk("mine")
    job = prepare(["--dataset_name", "mine", "--output_dir", "x"])
    assert list(job.trainer.model.config.id2label.values()) == ["NOUN", "VERB", "X"]
    numbers = sentences(tags=[[len(word) for word in row] for row in TOKENS])
    run("--train_file", numbers, "--output_dir", "numbers")
    assert "eval_accuracy" in results("numbers") and "eval_f1" not in results("numbers")


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"tokens": [["a", "b"], ["c"]], "tags": [["O", "X"], ["O", "X"]]}, ValueError, "row 1 .* has 1 words .* 2 tags"),
        ({"tokens": [["a"], []], "tags": [["O"], []]}, ValueError, "row 1 of the train data has no words"),
        ({"tokens": [["a"], None], "tags": [["O"], ["O"]]}, ValueError, "'tokens' of the train data has 1 missing values"),
        ({"tokens": [["a"], ["b", None]], "tags": [["O"], ["O", "X"]]}, ValueError, "row 1 .* missing values .*'tokens'"),
        ({"tokens": [["a"], ["b", "c"]], "tags": [["O"], ["X", None]]}, ValueError, "row 1 .* missing values .*'tags'"),
        ({"tokens": [["a"], ["b"]], "tags": [["O"], ["O"]]}, ValueError, "has a single class, 'O'"),
        ({"tokens": [["a"], ["b"]], "tags": [[0], [-1]]}, ValueError, "negative labels"),
        ({"tokens": [["a"], ["b"]], "tags": [[0.5], [1.0]]}, TypeError, "is double|is float"),
        ({"tokens": [[1], [2]], "tags": [["O"], ["X"]]}, TypeError, "tokens_column_name.*not list of int64"),
        ({"tokens": ["a b", "c"], "tags": [["O"], ["X"]]}, TypeError, "must hold lists, not string; csv and tsv"),
        ({"a": [["x"]], "b": [["O"]]}, ValueError, r"label_column_name: .*Columns: a \(list of string\), b \("),
    ],
)  # fmt: skip
def test_bad_rows(rows, error, message):
    with pytest.raises(error, match=message):
        prepare(["--train_file", write("train.jsonl", rows)])


def test_metrics_look_at_counted_words_alone():
    names = ["O", "B-A", "I-A"]
    labels = np.array([[-100, 1, 2, -100], [-100, 0, -100, -100]])
    logits = 9.0 * np.eye(3)[np.where(labels == -100, 1, labels)]
    metrics = TagMetrics(names)
    found = metrics(EvalPrediction(logits, labels))
    assert (found["accuracy"], found["precision"], found["recall"], found["f1"]) == (1, 1, 1, 1)
    logits[0, 2] = [9, 0, 0]
    found = metrics(EvalPrediction(logits, labels))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["f1"] == 0
    assert metrics.scores == [("A", 1, 0.0, 0.0, 0.0)]
    words = TagMetrics(["X", "Y", "Z"])
    assert "f1" not in words(EvalPrediction(logits, labels))
    assert [(each.name, each.support, each.recall) for each in words.scores] == [("X", 1, 1.0), ("Y", 1, 1.0), ("Z", 1, 0.0)]
