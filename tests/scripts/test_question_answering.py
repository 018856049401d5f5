"""Question answering, from input to saved model."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertConfig, BertForSequenceClassification

from maxsup_hf.data.answers import answer_metrics, predict_answers
from maxsup_hf.scripts import question_answering
from maxsup_hf.scripts.question_answering import prepare
from tests.scripts.conftest import results, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "20", "--disable_tqdm", "true"]
QUESTIONS = ["Who?", "Where?"] * 4
CONTEXTS = ["Ann is in Rome", "Bob is in Paris", "Eve is in Oslo", "Max is in Bern"] * 2
ANSWERS = ["Ann", "Paris", "Eve", "Bern"] * 2


def questions(name="train.jsonl", questions=QUESTIONS, contexts=CONTEXTS, answers=ANSWERS):
    return write(name, {"question": questions, "context": contexts, "answers": answers})


def squad(answers, contexts=CONTEXTS):
    return [
        {"text": [answer], "answer_start": [context.index(answer)]}
        for answer, context in zip(answers, contexts, strict=True)
    ]


def run(*argv):
    question_answering.main([*argv, *SHORT])


def marked(dataset, tokenizer):
    """The text that the positions of each window mark, from the characters and from the tokens."""
    found = []
    for row in dataset:
        first, last = row["start_positions"], row["end_positions"]
        text = row["passage"][row["begins"][first] : row["ends"][last]].strip()
        decoded = tokenizer.decode(row["input_ids"][first : last + 1], skip_special_tokens=True).strip()
        assert decoded == text
        found.append(text)
    return found


def perfect_logits(dataset):
    """Logits that say what the labels say, padded to the longest window."""
    logits = np.full((2, len(dataset), max(map(len, dataset["input_ids"]))), -100.0, dtype=np.float32)
    for i, row in enumerate(dataset):
        logits[:, i, : len(row["input_ids"])] = 0
        logits[0, i, row["start_positions"]] = logits[1, i, row["end_positions"]] = 9
    return logits


def test_without_data(capsys):
    run("--max_train_samples", "500")
    folder = "outputs/question-answering"
    assert capsys.readouterr().out.strip().endswith(f"saved to {folder}")
    found = results(folder)
    assert {"eval_loss", "eval_exact_match", "eval_f1"} <= set(found) and found["eval_samples"] == 20
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Which is a currency?", "Schweden, Zulu und Euro", return_tensors="pt")
    outputs = model(**inputs)
    assert outputs.start_logits.shape == outputs.end_logits.shape == inputs["input_ids"].shape


@pytest.mark.parametrize("extension", ["csv", "json", "jsonl", "parquet"])
def test_files_with_a_test_set(extension):
    train = questions(f"train.{extension}")
    test = questions(f"test.{extension}", QUESTIONS[:2], CONTEXTS[:2], ANSWERS[:2])
    job = prepare(["--train_file", train, "--test_file", test, "--output_dir", "run"])
    assert len(job.trainer.train_dataset) + len(job.trainer.eval_dataset) == 8
    assert marked(job.test_dataset, job.trainer.processing_class) == ["Ann", "Paris"]


def test_learns_from_a_file():
    only_at_the_end = ["--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]
    train, test = questions(), questions("test.parquet", answers=squad(ANSWERS))
    argv = ["--train_file", train, "--validation_file", train, "--test_file", test, "--output_dir", "run"]
    question_answering.main([*argv, "--num_train_epochs", "40", *only_at_the_end])
    found = results("run")
    assert found["eval_exact_match"] == found["eval_f1"] == found["test_exact_match"] == 1.0


def test_answers_in_the_form_of_squad_may_be_several_and_need_not_be_the_first_occurrence():
    context = "no no yes no"
    answers = [{"text": ["no", "yes"], "answer_start": [10, 6]}] * 2
    train = questions(questions=["a?", "b?"], contexts=[context] * 2, answers=answers)
    job = prepare(["--train_file", train, "--validation_file", train, "--output_dir", "x"])
    row = job.trainer.eval_dataset[0]
    assert row["begins"][row["start_positions"]] in (9, 10) and row["ends"][row["end_positions"]] == 12
    assert answer_metrics({0: "Yes", 1: "maybe"}, job.trainer.eval_dataset) == {"exact_match": 0.5, "f1": 0.5}


def test_windows_of_long_contexts():
    words = [f"w{i}" for i in range(60)]
    contexts = [" ".join(words), " ".join(words[::-1]), "short w7"]
    train = questions(questions=["Which one is it?"] * 3, contexts=contexts, answers=["w30 w31", "w2", "w7"])
    argv = ["--train_file", train, "--validation_file", train, "--output_dir", "x"]
    job = prepare([*argv, "--max_seq_length", "32", "--doc_stride", "8"])
    rows, tokenizer = job.trainer.eval_dataset, job.trainer.processing_class
    assert max(map(len, rows["input_ids"])) == 32
    assert list(rows["row"]) == sorted(rows["row"]) and list(rows["row"]).count(2) == 1
    for row, (context, answer) in enumerate(zip(contexts, ["w30 w31", "w2", "w7"], strict=True)):
        passages = [window["passage"] for window in rows if window["row"] == row]
        assert all(passage in context for passage in passages)
        assert context.startswith(passages[0].strip()) and context.endswith(passages[-1].strip())
        # overlapping, so that no short answer is cut in every window
        texts = [text for text, window in zip(marked(rows, tokenizer), rows, strict=True) if window["row"] == row]
        assert set(texts) <= {answer, ""} and answer in texts
    start_logits, end_logits = perfect_logits(rows)
    predicted = predict_answers(start_logits, end_logits, rows, may_be_none=False)
    assert predicted == {0: "w30 w31", 1: "w2", 2: "w7"}
    assert answer_metrics(predicted, rows) == {"exact_match": 1, "f1": 1}


def test_questions_without_an_answer():
    answers = ["Ann", None, "", "Bern", "Ann", "Paris", None, "Bern"]
    train = questions(answers=answers)
    job = prepare(["--train_file", train, "--validation_file", train, "--output_dir", "x"])
    rows = job.trainer.eval_dataset
    assert marked(rows, job.trainer.processing_class) == [answer or "" for answer in answers]
    assert job.trainer.may_be_none and not prepare(["--train_file", questions(), "--output_dir", "x"]).trainer.may_be_none
    start_logits, end_logits = perfect_logits(rows)
    assert answer_metrics(predict_answers(start_logits, end_logits, rows, True), rows)["exact_match"] == 1
    assert answer_metrics(predict_answers(start_logits, end_logits, rows, False), rows)["exact_match"] == 5 / 8


def test_the_best_span_does_not_end_before_it_begins():
    train = questions(questions=["Who?"] * 2, contexts=["one two three"] * 2, answers=["one"] * 2)
    rows = prepare(["--train_file", train, "--validation_file", train, "--output_dir", "x"]).trainer.eval_dataset
    tokens = [i for i, (begin, end) in enumerate(zip(rows[0]["begins"], rows[0]["ends"], strict=True)) if end > begin]
    starts, ends = np.zeros((2, len(rows), len(rows[0]["input_ids"])))
    starts[:, tokens[-1]] = ends[:, tokens[0]] = 5  # the best pair is not a span
    starts[:, tokens[0]] = 1
    assert predict_answers(starts, ends, rows, False)[0] in ("one", "one two three"[: rows[0]["ends"][tokens[0]]])


def test_a_classifier_becomes_a_model_with_two_ends():
    run("--train_file", questions(), "--output_dir", "first")
    tokenizer = AutoTokenizer.from_pretrained("first")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained("classifier")
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained("classifier")
    job = prepare(["--train_file", questions(), "--model_name_or_path", "classifier", "--output_dir", "x"])
    assert job.trainer.model.qa_outputs.out_features == 2
    row = dict(job.trainer.train_dataset[0])
    batch = job.trainer.data_collator([{name: row[name] for name in ("input_ids", "start_positions")}])
    assert torch.equal(batch["input_ids"][0], torch.tensor(row["input_ids"]))
    assert job.trainer.processing_class.padding_side == "right"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"answers": ["Ann", "Berlin"]}, ValueError, "row 1 .*: the answer 'Berlin' is not in the context 'Bob"),
        ({"answers": squad(["Ann", "Bob"], ["xAnn", "Bob"])}, ValueError, "'Ann' does not start at .* 1 .* there is 'nn '"),
        ({"answers": [{"text": ["Ann"], "answer_start": []}] * 2}, ValueError, "row 0 .* has 1 texts and 0 starts"),
        ({"answers": [{"text": ["Ann"], "answer_start": [-1]}] * 2}, ValueError, "'Ann' does not start at character -1"),
        ({"answers": [1, 2]}, TypeError, "column 'answers' .* must hold strings, lists of strings, or"),
        ({"contexts": ["Ann", " "]}, ValueError, "row 1 of the train data has an empty context"),
        ({"contexts": ["Ann", None]}, ValueError, "'context' of the train data has 1 missing values"),
        ({"questions": ["Who?", None]}, ValueError, "'question' of the train data has 1 missing values"),
        ({"questions": ["Who?", "why " * 600]}, ValueError, "max_seq_length: the question in row 1 .* leaves no room"),
    ],
)  # fmt: skip
def test_bad_rows(changes, error, message):
    rows = {"questions": QUESTIONS[:2], "contexts": CONTEXTS[:2], "answers": ANSWERS[:2]}
    train = questions(**{**rows, **changes})
    with pytest.raises(error, match=message):
        prepare(["--train_file", train, "--validation_file", train])
