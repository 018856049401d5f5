"""Language modelling, from input to saved model."""

import math
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, GPT2Config, pipeline

from maxsup_hf.scripts import language_modeling
from tests.scripts.conftest import results, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "8", "--disable_tqdm", "true"]
TEXTS = [f"The {a} {b} runs over the {c}." for a in ("quick", "lazy") for b in ("fox", "dog") for c in ("hill", "road")] * 4


def run(*argv):
    language_modeling.main([*argv, *SHORT])


def prepare(*argv):
    return language_modeling.prepare([*argv, "--output_dir", "x"])


def tiny_gpt2(folder="gpt2", **kwargs):
    GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64, **kwargs).save_pretrained(folder)
    return folder


def test_causal_without_data(capsys):
    run()
    folder = "outputs/language-modeling"
    assert capsys.readouterr().out.strip().endswith(f"saved to {folder}")
    found = results(folder)
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    assert {"train_loss", "train_samples"} <= set(found) and found["eval_samples"] == 8
    answer = pipeline("text-generation", model=folder)("The statement", max_new_tokens=4, do_sample=False)
    assert answer[0]["generated_text"].strip().startswith("The statement")


def test_masked_without_data():
    run("--mlm", "--output_dir", "run")
    found = results("run")
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    tokenizer = AutoTokenizer.from_pretrained("run")
    answers = pipeline("fill-mask", model="run")(f"The {tokenizer.mask_token} statement", top_k=3)
    assert len(answers) == 3


def test_evaluation_masks_the_same_tokens_at_every_time():
    train = write("train.csv", {"text": TEXTS})
    first, second = (prepare("--mlm", "--train_file", train, "--block_size", "8", "--seed", s).trainer for s in "12")
    assert first.eval_dataset["labels"][:] == second.eval_dataset["labels"][:]
    assert {label for row in first.eval_dataset["labels"] for label in row} - {-100}
    assert "labels" not in first.train_dataset.column_names


def test_texts_are_packed_without_loss():
    train = write("train.jsonl", {"text": TEXTS})
    trainer = prepare("--train_file", train, "--validation_file", train, "--block_size", "8").trainer
    tokenizer = trainer.processing_class
    tokens = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    packed = [token for block in trainer.train_dataset["input_ids"] for token in block]
    assert packed == tokens[: len(tokens) // 8 * 8]
    assert {len(block) for block in trainer.train_dataset["input_ids"]} == {8}
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] == batch["input_ids"]).all(), "end tokens are labels too"


def test_a_single_text_in_a_file_is_cut_at_its_end():
    text = "".join(f"Line {i} of a long text.\n" for i in range(200))
    Path("train.txt").write_text(text)
    job = prepare("--train_file", "train.txt", "--block_size", "16", "--train_val_split", "0.25")
    train, validation = job.trainer.train_dataset, job.trainer.eval_dataset
    assert len(validation) == pytest.approx(len(train) / 3, abs=1)
    tokenizer = job.trainer.processing_class
    tokens = [token for dataset in (train, validation) for block in dataset["input_ids"] for token in block]
    assert text.startswith(tokenizer.decode(tokens[:-16]).strip()[:2000])
    assert tokenizer.decode(validation["input_ids"][-1][:8]) in text[-500:]


def test_learns_and_tests_at_the_end():
    train = write("train.parquet", {"text": TEXTS * 4})
    flags = ["--train_file", train, "--test_file", train, "--block_size", "16", "--eval_strategy", "no", "--save_strategy"]
    language_modeling.main([*flags, "no", "--output_dir", "run", "--num_train_epochs", "4", "--disable_tqdm", "true"])
    found = results("run")
    assert found["test_perplexity"] == pytest.approx(math.exp(found["test_loss"]))
    assert found["test_perplexity"] < 20, "of about 300 tokens"


@pytest.mark.parametrize("mlm", [False, True])
def test_fine_tuning_keeps_model_and_tokenizer(mlm):
    train = write("train.csv", {"text": TEXTS})
    flags = ["--train_file", train, "--block_size", "8", *(["--mlm"] if mlm else [])]
    run(*flags, "--output_dir", "first")
    trainer = prepare(*flags, "--model_name_or_path", "first").trainer
    assert trainer.processing_class.get_vocab() == AutoTokenizer.from_pretrained("first").get_vocab()
    assert len(trainer.processing_class) == trainer.model.config.vocab_size


def test_config_of_the_user():
    train = write("train.csv", {"text": TEXTS * 4})
    trainer = prepare("--train_file", train, "--config_name", tiny_gpt2()).trainer
    assert {len(block) for block in trainer.train_dataset["input_ids"]} == {64}, "what the model takes"
    assert trainer.model.config.eos_token_id == trainer.processing_class.eos_token_id
    with pytest.raises(ValueError, match="block_size: 65 tokens are more than the 64 that the model takes"):
        prepare("--train_file", train, "--config_name", "gpt2", "--block_size", "65")
    BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained("bert")
    with pytest.raises(ValueError, match=r"'bert' \(bert\) is a masked language model; add --mlm"):
        prepare("--train_file", train, "--config_name", "bert")
    trainer = prepare("--train_file", train, "--config_name", "bert", "--mlm", "--block_size", "8").trainer
    assert len(trainer.processing_class) <= 300


def test_tokenizer_that_does_not_fit():
    train = write("train.csv", {"text": TEXTS})
    run("--train_file", train, "--block_size", "8", "--output_dir", "causal")
    GPT2Config(vocab_size=270, n_embd=16, n_layer=1, n_head=2).save_pretrained("small")
    with pytest.raises(ValueError, match="more than the model's vocab_size of 270"):
        prepare("--train_file", train, "--config_name", "small", "--tokenizer_name", "causal")
    with pytest.raises(ValueError, match="tokenizer_name: the tokenizer of 'causal' has no mask token"):
        prepare("--train_file", train, "--tokenizer_name", "causal", "--mlm")


@pytest.mark.parametrize(
    ("rows", "argv", "error", "message"),
    [
        ({"text": [1, 2]}, [], TypeError, "text_column_name: column 'text' of the train data must hold strings, not int64"),
        ({"text": ["a", None, "b"]}, [], ValueError, "'text' of the train data has 1 missing values in 3 rows"),
        ({"a": ["x"], "b": ["y"]}, [], ValueError, r"could be any of a, b; .*Columns: a \(string\), b \(string\)"),
        ({"text": ["a b"]}, ["--text_column_name", "txt"], ValueError, r"no column 'txt'. Columns: text \(string\)"),
        (
            {"text": ["too short"]},
            [],
            ValueError,
            "has . tokens, too few for one block of 128; lower --block_size",
        ),
        ({"text": ["a b c d e"]}, ["--block_size", "6"], ValueError, "one block, too little to hold one out"),
        ({"text": ["a"]}, ["--block_size", "1"], ValueError, "block_size must be at least 2"),
        ({"text": ["a"]}, ["--mlm_probability", "1"], ValueError, "mlm_probability must lie between 0 and 1"),
        ({"text": ["a"]}, ["--label_column_name", "text"], ValueError, "unknown argument: '--label_column_name'"),
        (
            {"text": ["a b c d e f"] * 20},
            ["--mlm", "--test_file", "train.jsonl", "--do_predict", "true", "--block_size", "4"],
            ValueError,
            r"do_predict: with --mlm the tokens at each \[MASK\] of the test texts are predicted, and row 0 has none",
        ),
    ],
)
def test_bad_input(rows, argv, error, message, tmp_path):
    train = write("train.jsonl", rows)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(error, match=message):
        language_modeling.prepare(["--train_file", train, *argv])
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache"}
