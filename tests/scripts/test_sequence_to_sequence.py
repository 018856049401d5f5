"""Sequence to sequence, from input to saved model."""

import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BertConfig, EvalPrediction

from maxsup_hf.scripts import sequence_to_sequence
from tests.scripts.conftest import results, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "4", "--disable_tqdm", "true"]
NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
ENGLISH = [f"{a} and {b}" for a in NUMBERS for b in NUMBERS]
GERMAN = [f"{a} und {b}" for a in NUMBERS.values() for b in NUMBERS.values()]


def run(*argv):
    sequence_to_sequence.main([*argv, *SHORT])


def prepare(*argv):
    return sequence_to_sequence.prepare([*argv, "--output_dir", "x"])


def pairs(name="train.csv", source="source", target="target"):
    return write(name, {source: ENGLISH, target: GERMAN})


def test_without_data(capsys):
    run()
    folder = "outputs/sequence-to-sequence"
    assert capsys.readouterr().out.strip().endswith(f"saved to {folder}")
    found = results(folder)
    assert {"train_loss", "eval_loss", "eval_chrf", "eval_exact_match"} <= set(found) and found["eval_samples"] == 4
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    written = model.generate(**tokenizer("12 kilometers", return_tensors="pt"), max_length=8)
    assert written.shape[1] <= 8
    assert tokenizer.decode(tokenizer("Grüße, 日本")["input_ids"], skip_special_tokens=True).strip() == "Grüße, 日本"


def test_learns_and_tests_at_the_end():
    train = pairs()
    flags = ["--train_file", train, "--validation_file", train, "--test_file", train, "--max_target_length", "12"]
    only_at_the_end = ["--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true", "--loss", "cross_entropy"]
    argv = [*flags, *only_at_the_end, "--num_train_epochs", "60", "--per_device_train_batch_size", "8"]
    sequence_to_sequence.main([*argv, "--output_dir", "run"])
    found = results("run")
    assert found["test_chrf"] == pytest.approx(found["eval_chrf"]) and found["test_chrf"] > 0.6
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("run").eval(), AutoTokenizer.from_pretrained("run")
    written = model.generate(**tokenizer(ENGLISH, return_tensors="pt", padding=True), max_length=13)
    texts = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert np.mean([a == b for a, b in zip(texts, GERMAN, strict=True)]) == found["eval_exact_match"]


def test_translation_column_of_the_hub():
    rows = [{"translation": {"en": a, "de": b}} for a, b in zip(ENGLISH, GERMAN, strict=True)]
    features = datasets.Features({"translation": datasets.Translation(languages=["en", "de"])})
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows, features)).save_to_disk("mine")
    write("train.json", datasets.Dataset.from_list(rows))
    for data in (["--dataset_name", "mine"], ["--train_file", "train.json"]):
        with pytest.raises(ValueError, match=r"could be any of .*Columns: translation\.(de|en) \(string\)"):
            prepare(*data)
        with pytest.raises(ValueError, match=r"source_column_name: the train data has no column 'fr'. Columns: translation"):
            prepare(*data, "--source_lang", "fr", "--target_lang", "de")
        trainer = prepare(*data, "--source_lang", "de", "--target_lang", "en").trainer
        decoded = trainer.processing_class.decode(trainer.train_dataset[0]["labels"], skip_special_tokens=True)
        assert decoded.strip() in ENGLISH


def test_languages_are_columns_too_and_the_rest_is_found():
    train = pairs(source="en", target="de")
    trainer = prepare("--train_file", train, "--source_lang", "en", "--target_lang", "de").trainer
    labels = trainer.processing_class.batch_decode(list(trainer.train_dataset["labels"]), skip_special_tokens=True)
    assert {label.strip() for label in labels} <= set(GERMAN)
    prepare("--train_file", train, "--target_column_name", "de")  # the other one is the source
    with pytest.raises(ValueError, match="are both 'de'"):
        prepare("--train_file", train, "--source_lang", "de", "--target_column_name", "de")


def test_prefix_and_lengths():
    flags = ["--train_file", pairs("train.jsonl", "article", "summary"), "--source_prefix", "count: "]
    trainer = prepare(*flags, "--max_seq_length", "5", "--max_target_length", "3").trainer
    tokenizer = trainer.processing_class
    rows = trainer.train_dataset
    assert {len(ids) for ids in rows["input_ids"]} == {5} and {len(ids) for ids in rows["labels"]} == {3}
    assert all(ids[-1] == tokenizer.eos_token_id for ids in [*rows["input_ids"], *rows["labels"]])
    assert tokenizer.decode(rows[0]["input_ids"]).strip().startswith("cou")
    assert trainer.args.generation_max_length == 4
    batch = next(iter(trainer.get_train_dataloader()))
    assert "decoder_input_ids" not in batch and "token_type_ids" not in batch


def test_without_generation():
    run("--train_file", pairs(), "--predict_with_generate", "false", "--output_dir", "run")
    found = results("run")
    assert "eval_loss" in found and "eval_chrf" not in found


def test_config_of_the_user_and_fine_tuning():
    BartConfig(
        vocab_size=300, d_model=16, max_position_embeddings=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    ).save_pretrained("bart")  # fmt: skip
    train = pairs()
    run("--train_file", train, "--config_name", "bart", "--max_target_length", "16", "--output_dir", "first")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("first"), AutoTokenizer.from_pretrained("first")
    assert model.config.decoder_start_token_id == model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.forced_eos_token_id is None
    trainer = prepare("--train_file", train, "--model_name_or_path", "first").trainer
    assert trainer.processing_class.get_vocab() == tokenizer.get_vocab()
    assert (trainer.model.model.shared.weight == model.model.shared.weight).all()
    BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained("bert")
    with pytest.raises(ValueError, match="config_name: 'bert' could not be loaded: Unrecognized configuration"):
        prepare("--train_file", train, "--config_name", "bert")


@pytest.mark.parametrize(
    ("rows", "argv", "error", "message"),
    [
        ({"source": ["a", "b"], "target": [1, 2]}, [], TypeError, "'target' of the train data must hold strings, not int64"),
        ({"source": ["a", None], "target": ["x", "y"]}, [], ValueError, "'source' of the train data has 1 missing values"),
        ({"source": ["a", "b"]}, [], ValueError, r"column_name: the column could not be found .*Columns: source \(string\)"),
        ({"a": ["a"], "b": ["b"]}, ["--source_column_name", "c"], ValueError, r"no column 'c'. Columns: a \(string\), b"),
        ({"source": ["a"], "target": ["b"]}, [], ValueError, "1 row, too few to hold one out"),
        ({"source": ["a"], "target": ["b"]}, ["--max_target_length", "0"], ValueError, "max_target_length must be at least"),
        ({"source": ["a"], "target": ["b"]}, ["--label_column_name", "b"], ValueError, "unknown argument"),
    ],
)
def test_bad_input(rows, argv, error, message):
    with pytest.raises(error, match=message):
        sequence_to_sequence.prepare(["--train_file", write("train.jsonl", rows), *argv])


def test_bleu_where_sacrebleu_is_installed(monkeypatch, caplog):
    trainer = prepare("--train_file", pairs()).trainer
    ids = np.array(trainer.processing_class(GERMAN[:2], padding=True)["input_ids"])
    labels = np.where(ids == trainer.processing_class.pad_token_id, -100, ids)
    with caplog.at_level("INFO", "maxsup_hf"):
        plain = sequence_to_sequence._text_metrics(trainer.processing_class)(EvalPrediction(ids, labels))
    assert plain == {"chrf": pytest.approx(1.0), "exact_match": 1.0}
    assert "without BLEU" in caplog.text
    monkeypatch.setattr(sequence_to_sequence, "find_spec", lambda name: name == "sacrebleu")
    bleu = SimpleNamespace(corpus_bleu=lambda found, wanted: SimpleNamespace(score=100.0 * (found == wanted[0])))
    monkeypatch.setitem(sys.modules, "sacrebleu", bleu)
    scores = sequence_to_sequence._text_metrics(trainer.processing_class)(EvalPrediction((ids,), labels))
    assert scores == {**plain, "bleu": 100.0}
