"""Rows of question answering: checked questions, windows of tokens, and answers read off the logits."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, load_dataset
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerBase

from maxsup_hf.data.columns import (
    check_column,
    check_strings,
    check_type,
    identifier_columns,
    is_list_of_strings,
    is_string,
    read_column,
)
from maxsup_hf.data.files import FORMATS, Reader, read_text
from maxsup_hf.metrics import answer_f1, exact_match
from maxsup_hf.output.messages import shortened

LONGEST_ANSWER = 30  # tokens: start and end are predicted separately, and must not end up far apart


def read_squad(path: str) -> Dataset:
    """Rows of a json file: in the form in which SQuAD is distributed (`data`, `paragraphs`, `qas`), or as `datasets` reads
    any json."""
    found: Any = None
    with suppress(json.JSONDecodeError):  # rows may be on lines of their own
        found = json.loads(read_text(path))
    articles = found.get("data") if isinstance(found, dict) else None
    if not isinstance(articles, list) or not all(isinstance(each, dict) and "paragraphs" in each for each in articles):
        return load_dataset("json", data_files={"train": glob.escape(path)}, split="train")
    try:
        rows = [
            {
                "id": str(qa.get("id", "")),
                "question": qa["question"],
                "context": paragraph["context"],
                "answers": {
                    "text": [answer["text"] for answer in qa.get("answers", [])],
                    "answer_start": [answer["answer_start"] for answer in qa.get("answers", [])],
                },
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not in the form of SQuAD: {type(error).__name__}: {error}") from None
    return Dataset.from_dict({name: [row[name] for row in rows] for name in SQUAD_FEATURES}, SQUAD_FEATURES)


SQUAD_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)
SQUAD_FORMATS: dict[str, Reader] = {**FORMATS, ".json": read_squad}


def is_squad(feature: Any) -> bool:
    """Whether a column holds answers in the form of SQuAD: their texts, and where they start."""
    return isinstance(feature, dict) and {"text", "answer_start"} <= feature.keys() and is_list_of_strings(feature["text"])


def check_answers(dataset: Dataset, question: str, context: str, answers: str, split: str) -> Dataset:
    """Check every row, and bring the answers into one form.

    An answer is a string or a list of strings, whose first occurrence in the context is meant (as whole words if possible),
    or a dict of the lists `text` and `answer_start` (in characters). Null, an empty string or empty lists mean that the
    context has no answer.

    Returns:
        The columns `question`, `context`, `texts` (the answers, a list that may be empty) and `start` (of the first, or -1),
        and those by which rows are known.

    Raises:
        TypeError, ValueError: a column does not exist or has the wrong type, values are missing, or an answer is not where
            it is said to be.
    """
    check_strings(dataset, question, "question_column_name", split)
    check_strings(dataset, context, "context_column_name", split)
    check_column(dataset, answers, "label_column_name", split)
    readable = (is_squad, is_string, is_list_of_strings)
    check_type(
        dataset, answers, "label_column_name", split, fits=lambda feature: any(fits(feature) for fits in readable),
        expected="strings, lists of strings, or the lists text and answer_start as in SQuAD",
    )  # fmt: skip
    contexts = read_column(dataset, context).to_pylist()
    texts, starts = [], []
    for row, (passage, value) in enumerate(zip(contexts, read_column(dataset, answers).to_pylist(), strict=True)):
        if not passage.strip():
            raise ValueError(f"context_column_name: row {row} of the {split} data has an empty context; drop such rows")
        try:
            found = _locate(value, passage)
        except ValueError as error:
            raise ValueError(f"label_column_name: row {row} of the {split} data: {error}; correct or drop it") from None
        texts.append([text for text, _ in found])
        starts.append(found[0][1] if found else -1)
    if split == "train" and not any(texts):
        raise ValueError(
            f"label_column_name: column {answers!r} of the train data has no answer in any of its {len(dataset)} rows: "
            "there is nothing to learn"
        )
    columns = {"question": read_column(dataset, question).to_pylist(), "context": contexts, "texts": texts, "start": starts}
    for name in identifier_columns(dataset, [question, context, answers]):
        columns.setdefault(name, read_column(dataset, name).to_pylist())
    return Dataset.from_dict(columns)


def _locate(value: Any, context: str) -> list[tuple[str, int]]:
    """The answers of a row that are not blank, and where in the context they start."""
    if not value:
        return []
    if isinstance(value, dict):
        found = _locate_squad(value, context)
    else:
        found = [place for text in ([value] if isinstance(value, str) else value) for place in _locate_string(text, context)]
    return [(text, start) for text, start in found if text.strip()]


def _locate_string(text: str, context: str) -> list[tuple[str, int]]:
    if text not in context:
        raise ValueError(f"the answer {text!r} is not in the context {shortened(context)}")
    whole_words = re.search(rf"(?<!\w){re.escape(text)}(?!\w)", context)
    return [(text, whole_words.start() if whole_words else context.index(text))]


def _locate_squad(value: dict[str, Any], context: str) -> list[tuple[str, int]]:
    texts, starts = value["text"] or [], value["answer_start"] or []
    if len(texts) != len(starts) or None in texts or None in starts:
        raise ValueError(f"the answer has {len(texts)} texts and {len(starts)} starts, or missing values among them")
    for text, start in zip(texts, starts, strict=True):
        if start < 0 or context[start : start + len(text)] != text:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            raise ValueError(
                f"the answer {text!r} does not start at character {start} of the context {shortened(context)}; there is "
                f"{there!r}"
            )
    return list(zip(texts, starts, strict=True))


def cut_into_windows(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, split: str) -> Dataset:
    """Tokenize each question with its context; contexts that are too long are cut into overlapping windows.

    If a window does not hold the whole answer, both positions are those of its first token (CLS), which means no answer.

    Args:
        dataset: from `check_answers`.
        length: of a window with its question, in tokens.
        stride: tokens of context that neighbouring windows share.

    Returns:
        The model's inputs with `start_positions` and `end_positions`; and for `predict_answers`: `row` (of `dataset`),
        `texts`, `passage` (the window's part of the context), `begins` and `ends` (the characters of it that each token
        stands for; both are 0 for tokens outside the context).

    Raises:
        ValueError: a question leaves no room for its context.
    """
    _check_room(dataset, tokenizer, length, stride, split)

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> Any:
        encoded = tokenizer(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        for i, (source, spans) in enumerate(zip(sources, offsets, strict=True)):
            of_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(i)])
            question = {name: values[source] for name, values in batch.items()}
            columns = {"row": indices[source], **_window(question, of_context, np.array(spans))}
            for name, value in columns.items():
                encoded.setdefault(name, []).append(value)
        return encoded

    return dataset.map(encode, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="tokenizing")


def _check_room(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, split: str) -> None:
    questions = tokenizer(list(dataset["question"]), add_special_tokens=False)["input_ids"]
    lengths = [len(ids) for ids in questions]
    row = int(np.argmax(lengths))
    if lengths[row] + tokenizer.num_special_tokens_to_add(pair=True) + stride >= length:
        raise ValueError(
            f"max_seq_length: the question in row {row} of the {split} data has {lengths[row]} tokens, which leaves no room "
            f"for its context in {length} tokens with doc_stride {stride}; raise max_seq_length, lower doc_stride, or "
            "shorten the question"
        )


def _window(question: dict[str, Any], of_context: NDArray[np.bool_], spans: NDArray) -> dict[str, Any]:
    """The columns of a window besides the model's inputs.

    Args:
        question: a row of `check_answers`.
        of_context: (L,) whether a token belongs to the context.
        spans: (L, 2) the characters that a token stands for.
    """
    edges = np.where(of_context[:, None], spans, 0)
    answer, start = next(iter(question["texts"]), ""), question["start"]
    first, last = _positions(edges, of_context, start, start + len(answer))
    left, right = edges[of_context].min(), edges.max()
    return {
        "start_positions": first,
        "end_positions": last,
        "texts": question["texts"],
        "passage": question["context"][left:right],
        "begins": np.where(of_context, edges[:, 0] - left, 0),
        "ends": np.where(of_context, edges[:, 1] - left, 0),
    }


def _positions(edges: NDArray, of_context: NDArray[np.bool_], start: int, end: int) -> tuple[int, int]:
    """The first and the last token of the characters [start, end), or (0, 0) if the window does not hold them all."""
    touching = np.flatnonzero(of_context & (edges[:, 0] < end) & (edges[:, 1] > start))
    if start < 0 or not len(touching) or edges[of_context].min() > start or edges.max() < end:
        return 0, 0
    return int(touching[0]), int(touching[-1])


def predict_answers(start_logits: ArrayLike, end_logits: ArrayLike, dataset: Dataset, may_be_none: bool) -> dict[int, str]:
    """The best answer of every row over its windows; an empty string means no answer.

    Args:
        start_logits, end_logits: (W, L), one row for each window, padded on the right to any L.
        dataset: the W windows, from `cut_into_windows`.
        may_be_none: whether a question may have no answer; that is predicted if every window scores it higher than any span.
    """
    best: dict[int, tuple[float, str]] = {}
    least_none: dict[int, float] = {}  # the lowest score of "no answer" over a row's windows
    for starts, ends, window in zip(np.asarray(start_logits), np.asarray(end_logits), dataset, strict=True):
        row, none = window["row"], float(starts[0] + ends[0])
        score, text = _best_span(starts, ends, window)
        least_none[row] = min(none, least_none.get(row, none))
        best[row] = max((score, text), best.get(row, (-np.inf, "")))
    return {row: "" if may_be_none and least_none[row] > score else text for row, (score, text) in best.items()}


def _best_span(starts: NDArray, ends: NDArray, window: dict[str, Any]) -> tuple[float, str]:
    """Score and text of the best span of at most `LONGEST_ANSWER` tokens of the context."""
    begin, end = np.array(window["begins"]), np.array(window["ends"])
    tokens = np.flatnonzero(end > begin)
    if not len(tokens):
        return -np.inf, ""
    scores = starts[tokens][:, None] + ends[tokens][None, :]
    allowed = np.triu(np.ones_like(scores, dtype=bool)) & ~np.triu(np.ones_like(scores, dtype=bool), LONGEST_ANSWER)
    scores = np.where(allowed, scores, -np.inf)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[first, last]), window["passage"][begin[tokens[first]] : end[tokens[last]]].strip()


def answer_metrics(predictions: dict[int, str], dataset: Dataset) -> dict[str, float]:
    """`exact_match` and `f1` of the predicted answers, as SQuAD computes them but in [0, 1]."""
    answers: dict[int, Sequence[str]] = dict(zip(dataset["row"], dataset["texts"], strict=True))
    scores = [(exact_match(predictions[row], texts), answer_f1(predictions[row], texts)) for row, texts in answers.items()]
    exact, f1 = np.mean(scores, axis=0)
    return {"exact_match": float(exact), "f1": float(f1)}
