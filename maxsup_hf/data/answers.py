"""Questions with a context that holds their answer: checked rows, windows of tokens, and answers out of logits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerBase

from maxsup_hf.data.columns import check_column, check_strings, is_list_of_strings, is_string, read_column
from maxsup_hf.metrics import answer_f1, exact_match

LONGEST_ANSWER = 30  # tokens; the two ends are predicted apart, and must not end up far from each other


def is_squad(feature: Any) -> bool:
    """Whether a column holds answers as SQuAD has them: their texts and where they start."""
    return isinstance(feature, dict) and {"text", "answer_start"} <= feature.keys() and is_list_of_strings(feature["text"])


def check_answers(dataset: Dataset, question: str, context: str, answers: str, split: str) -> Dataset:
    """Check every row, and bring the answers into one form.

    An answer is a string, of which the first occurrence in the context counts (as whole words, where there is one), or a
    dict of the lists `text` and `answer_start` (characters). No answer (null, an empty string or empty lists) says that the
    context holds none.

    Returns:
        The columns `question`, `context`, `texts` (the answers, a list that may be empty) and `start` (of the first, or -1).

    Raises:
        TypeError, ValueError: a column that is missing or of another type, missing values, or an answer that is not where
            it is said to be.
    """
    check_strings(dataset, question, "question_column_name", split)
    check_strings(dataset, context, "context_column_name", split)
    check_column(dataset, answers, "label_column_name", split)
    feature = dataset.features[answers]
    if not (is_squad(feature) or is_string(feature)):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise TypeError(
            f"label_column_name: column {answers!r} of the {split} data must hold strings, or the lists text and "
            f"answer_start as in SQuAD, not {kind}"
        )
    contexts = read_column(dataset, context).to_pylist()
    texts, starts = [], []
    for row, (passage, value) in enumerate(zip(contexts, read_column(dataset, answers).to_pylist(), strict=True)):
        if not passage.strip():
            raise ValueError(f"row {row} of the {split} data has an empty context; drop such rows")
        try:
            found = _spans(value, passage)
        except ValueError as error:
            raise ValueError(f"row {row} of the {split} data: {error}") from None
        texts.append([text for text, _ in found])
        starts.append(found[0][1] if found else -1)
    columns = {"question": read_column(dataset, question).to_pylist(), "context": contexts, "texts": texts, "start": starts}
    return Dataset.from_dict(columns)


def _spans(value: Any, context: str) -> list[tuple[str, int]]:
    """The answers of a row that have a text, and where in the context they start."""
    if not value:
        return []
    if isinstance(value, str):
        if value not in context:
            raise ValueError(f"the answer {value!r} is not in the context {_short(context)}")
        whole_words = re.search(rf"(?<!\w){re.escape(value)}(?!\w)", context)
        return [(value, whole_words.start() if whole_words else context.index(value))] if value.strip() else []
    texts, starts = value["text"] or [], value["answer_start"] or []
    if len(texts) != len(starts) or None in texts or None in starts:
        raise ValueError(f"the answer has {len(texts)} texts and {len(starts)} starts, or missing values among them")
    for text, start in zip(texts, starts, strict=True):
        if start < 0 or context[start : start + len(text)] != text:
            raise ValueError(
                f"the answer {text!r} does not start at character {start} of the context {_short(context)}; there is "
                f"{context[max(start, 0) : max(start, 0) + len(text)]!r}"
            )
    return [(text, start) for text, start in zip(texts, starts, strict=True) if text.strip()]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")


def windows(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, split: str) -> Dataset:
    """Cut contexts that are too long into windows that overlap, each with its question.

    Where a window does not hold the whole answer, both positions are those of the first token (CLS): no answer here.

    Args:
        dataset: from `check_answers`.
        length: of a window with its question, in tokens.
        stride: tokens of context that neighbouring windows share.

    Returns:
        The model's inputs with `start_positions` and `end_positions`; and for `predict_answers` `row` (of `dataset`),
        `texts`, `passage` (the window's own part of the context), `begins` and `ends` (characters of it that each token
        stands for; both 0 for tokens that are not of the context).

    Raises:
        ValueError: a question leaves no room for its context.
    """
    questions = tokenizer(list(dataset["question"]), add_special_tokens=False)["input_ids"]
    lengths = [len(ids) for ids in questions]
    row = int(np.argmax(lengths))
    if lengths[row] + tokenizer.num_special_tokens_to_add(pair=True) + stride >= length:
        raise ValueError(
            f"max_seq_length: the question in row {row} of the {split} data has {lengths[row]} tokens, which leaves no room "
            f"for its context in {length} with doc_stride {stride}; raise the one, lower the other or cut the question"
        )

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
            edges = np.where(of_context[:, None], np.array(spans), 0)
            answer, start = next(iter(batch["texts"][source]), ""), batch["start"][source]
            first, last = _positions(edges, of_context, start, start + len(answer))
            left, right = edges[of_context].min(), edges.max()
            columns = {
                "start_positions": first,
                "end_positions": last,
                "row": indices[source],
                "texts": batch["texts"][source],
                "passage": batch["context"][source][left:right],
                "begins": np.where(of_context, edges[:, 0] - left, 0),
                "ends": np.where(of_context, edges[:, 1] - left, 0),
            }
            for name, value in columns.items():
                encoded.setdefault(name, []).append(value)
        return encoded

    return dataset.map(encode, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="tokenizing")


def _positions(edges: NDArray, of_context: NDArray[np.bool_], start: int, end: int) -> tuple[int, int]:
    """The first and the last token of the characters [start, end), or (0, 0) where they are not all in the window."""
    touching = np.flatnonzero(of_context & (edges[:, 0] < end) & (edges[:, 1] > start))
    if start < 0 or not len(touching) or edges[of_context].min() > start or edges.max() < end:
        return 0, 0
    return int(touching[0]), int(touching[-1])


def predict_answers(start_logits: ArrayLike, end_logits: ArrayLike, dataset: Dataset, may_be_none: bool) -> dict[int, str]:
    """The best answer of every row over its windows; the empty string for none.

    Args:
        start_logits, end_logits: (W, L) of the windows, padded on the right to any L.
        dataset: the W windows, from `windows`.
        may_be_none: whether "no answer" is an answer; it is given where every window finds it better than any span.
    """
    best: dict[int, tuple[float, str]] = {}
    least_none: dict[int, float] = {}
    for starts, ends, window in zip(np.asarray(start_logits), np.asarray(end_logits), dataset, strict=True):
        row, none = window["row"], float(starts[0] + ends[0])
        score, text = _best_span(starts, ends, window)
        least_none[row] = min(none, least_none.get(row, none))
        best[row] = max((score, text), best.get(row, (-np.inf, "")))
    return {row: "" if may_be_none and least_none[row] > score else text for row, (score, text) in best.items()}


def _best_span(starts: NDArray, ends: NDArray, window: dict[str, Any]) -> tuple[float, str]:
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
    """`exact_match` and `f1` of answers to the rows of windows, as SQuAD computes them but in [0, 1]."""
    answers: dict[int, Sequence[str]] = dict(zip(dataset["row"], dataset["texts"], strict=True))
    scores = [(exact_match(predictions[row], texts), answer_f1(predictions[row], texts)) for row, texts in answers.items()]
    exact, f1 = np.mean(scores, axis=0)
    return {"exact_match": float(exact), "f1": float(f1)}
