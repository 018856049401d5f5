"""What each task predicts, row by row, with the preprocessing of its training script."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSemanticSegmentation,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForMultipleChoice,
    DataCollatorWithPadding,
)

from maxsup_hf.data.answers import cut_into_windows, predict_answers
from maxsup_hf.data.choices import CHOICES_NAMES, QUESTION_NAMES, check_counts, read_choices, usual_layout
from maxsup_hf.data.columns import (
    check_strings,
    check_type,
    find_column,
    is_list_of_strings,
    is_string,
    read_column,
    report_columns,
)
from maxsup_hf.data.tags import TOKEN_NAMES, check_lists
from maxsup_hf.prediction.images import classify_images, segment
from maxsup_hf.prediction.model import Model, Row, logits_of, most_probable
from maxsup_hf.prediction.texts import fill, go_on, rewrite
from maxsup_hf.scripts import multiple_choice, question_answering
from maxsup_hf.scripts.text_classification import text_columns, tokenize
from maxsup_hf.scripts.token_classification import words_with_prefix_space

logger = logging.getLogger(__name__)

# ---- classes ----


def classify_texts(model: Model, rows: Dataset) -> list[Row]:
    columns = text_columns(rows, model.args.text_column_name, model.args.label_column_name or "", "test")
    for column in columns:
        check_strings(rows, column, "text_column_name", "test")
    report_columns(rows, [*columns, *([model.args.label_column_name] if model.args.label_column_name else [])])
    encoded = tokenize(rows.select_columns(columns), columns, model.processor, model.length)
    logits = model.logits(encoded, DataCollatorWithPadding(model.processor))
    found = most_probable(logits, model.names, model.args.top_k)
    texts = [dict(zip(columns, row, strict=True)) for row in zip(*(rows[column] for column in columns), strict=True)]
    return [text | row for text, row in zip(texts, found, strict=True)]


def choose(model: Model, rows: Dataset) -> list[Row]:
    rows = usual_layout(rows, "test")
    args, label = model.args, model.args.label_column_name
    choices = [name.strip() for name in args.choices_column_name.split(",")] if args.choices_column_name else None
    taken = [label] if label else []
    if choices is None:
        choices = [
            find_column(
                rows, "choices_column_name", None, fits=is_list_of_strings, names=CHOICES_NAMES, taken=taken, split="test"
            )
        ]
    question = find_column(
        rows,
        "question_column_name",
        args.question_column_name,
        fits=is_string,
        names=QUESTION_NAMES,
        taken=[*taken, *choices],
        split="test",
    )
    check_strings(rows, question, "question_column_name", "test")
    listed = read_choices(rows, choices, "test")
    check_counts(listed, len(listed[0]), "test", of="test")
    # the collator expects labels, and the outputs do not depend on them
    columns = {"question": read_column(rows, question).to_pylist(), "choices": listed, "labels": [0] * len(rows)}
    encoded = multiple_choice.tokenize(Dataset.from_dict(columns), model.processor, model.length)
    logits = model.logits(encoded, DataCollatorForMultipleChoice(model.processor))
    best = logits.softmax(-1).max(-1)
    return [
        {"question": columns["question"][i], "prediction": listed[i][k], "index": k, "probability": probability}
        for i, (k, probability) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    ]


# ---- tags, answers ----


def tag(model: Model, rows: Dataset) -> list[Row]:
    """One tag for each word. A sentence that is too long is cut into overlapping windows, and the tag of a word is that of
    the window where it is farthest from the ends."""
    column = find_column(
        rows, "tokens_column_name", model.args.tokens_column_name, fits=is_list_of_strings, names=TOKEN_NAMES,
        taken=[model.args.label_column_name or ""], split="test",
    )  # fmt: skip
    if is_string(rows.features[column]):
        check_strings(rows, column, "tokens_column_name", "test")
    else:
        check_lists(rows, column, "tokens_column_name", "test")
        fits, expected = is_list_of_strings, "lists of words"
        check_type(rows, column, "tokens_column_name", "test", fits=fits, expected=expected)
    values = read_column(rows, column).to_pylist()
    sentences = [value.split() if isinstance(value, str) else value for value in values]
    words_with_prefix_space(model.processor)
    encoded = model.processor(
        sentences, is_split_into_words=True, truncation=True, max_length=model.length, stride=model.length // 4,
        return_overflowing_tokens=True,
    )  # fmt: skip
    sources = encoded.pop("overflow_to_sample_mapping")
    tags = [[""] * len(words) for words in sentences]
    margins = [[-1] * len(words) for words in sentences]  # how far a word is from the ends of its window
    window = 0
    for output in model.outputs(Dataset.from_dict(dict(encoded)), DataCollatorWithPadding(model.processor)):
        for best in logits_of(output).argmax(-1).tolist():
            row, words = sources[window], encoded.word_ids(window)
            positions = [position for position, word in enumerate(words) if word is not None]
            for position in reversed(positions):  # the first token of a word decides
                word, margin = words[position], min(position - positions[0], positions[-1] - position)
                if margin >= margins[row][word] or words[position + 1] == word:
                    tags[row][word], margins[row][word] = model.names[best[position]], margin
            window += 1
    without = sum(tag == "" for row in tags for tag in row)
    if without:
        logger.warning("%d words have no tag, because the tokenizer drops them", without)
    return [{"words": words, "prediction": found} for words, found in zip(sentences, tags, strict=True)]


def answer(model: Model, rows: Dataset) -> list[Row]:
    args = model.args
    question = find_column(
        rows, "question_column_name", args.question_column_name, fits=is_string, names=question_answering.QUESTION_NAMES,
        split="test",
    )  # fmt: skip
    context = find_column(
        rows, "context_column_name", args.context_column_name, fits=is_string, names=question_answering.CONTEXT_NAMES,
        taken=[question], split="test",
    )  # fmt: skip
    for name, column in (("question", question), ("context", context)):
        check_strings(rows, column, f"{name}_column_name", "test")
    columns = {"question": read_column(rows, question).to_pylist(), "context": read_column(rows, context).to_pylist()}
    empty = next((i for i, text in enumerate(columns["context"]) if not text.strip()), None)
    if empty is not None:
        raise ValueError(f"context_column_name: row {empty} of the test data has an empty context; drop such rows")
    unanswered = Dataset.from_dict({**columns, "texts": [[""]] * len(rows), "start": [-1] * len(rows)})
    model.processor.padding_side = "right"
    windows = cut_into_windows(unanswered, model.processor, model.length, model.length // 4, "test")
    inputs = windows.select_columns([name for name in model.processor.model_input_names if name in windows.column_names])
    starts, ends = [], []
    for output in model.outputs(inputs, DataCollatorWithPadding(model.processor)):
        starts += list(output.start_logits.float().cpu().numpy())
        ends += list(output.end_logits.float().cpu().numpy())
    longest = max(map(len, starts))
    best = predict_answers(_padded(starts, longest), _padded(ends, longest), windows, args.allow_no_answer)
    return [{"question": columns["question"][i], "prediction": best[i]} for i in range(len(rows))]


def _padded(rows: Sequence[NDArray], length: int) -> NDArray:
    return np.stack([np.pad(row, (0, length - len(row)), constant_values=-np.inf) for row in rows])


class Task(NamedTuple):
    """How a task is predicted.

    Attributes:
        auto_class: loads its models.
        predict: from a model and rows to what is written of each row.
        reads_images: whether the model has an image processor in place of a tokenizer.
    """

    auto_class: Any
    predict: Callable[[Model, Dataset], list[Row]]
    reads_images: bool = False


TASKS = {
    "image-classification": Task(AutoModelForImageClassification, classify_images, True),
    "text-classification": Task(AutoModelForSequenceClassification, classify_texts),
    "token-classification": Task(AutoModelForTokenClassification, tag),
    "question-answering": Task(AutoModelForQuestionAnswering, answer),
    "multiple-choice": Task(AutoModelForMultipleChoice, choose),
    "semantic-segmentation": Task(AutoModelForSemanticSegmentation, segment, True),
    "sequence-to-sequence": Task(AutoModelForSeq2SeqLM, rewrite),
    "language-modeling": Task(AutoModelForCausalLM, go_on),
    "masked-language-modeling": Task(AutoModelForMaskedLM, fill),
}
# How a class of transformers ends, an auto class included, and the task that it is for.
HEADS = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForConditionalGeneration": "sequence-to-sequence",
    "ForSeq2SeqLM": "sequence-to-sequence",
    "ForCausalLM": "language-modeling",
    "LMHeadModel": "language-modeling",
    "ForMaskedLM": "masked-language-modeling",
}


def find_task(architectures: Sequence[str]) -> str:
    """The task of a model, by the name of its class.

    Raises:
        ValueError: none is known.
    """
    for architecture in architectures:
        for ending, task in HEADS.items():
            if architecture.endswith(ending):
                return task
    known = f"a {', '.join(architectures)}" if architectures else "of an unknown class"
    raise ValueError(f"the model is {known}; name its task with --task")
