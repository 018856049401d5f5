"""What each task predicts, row by row, with the preprocessing of its training script."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
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
from maxsup_hf.data.choices import CHOICES_NAMES, QUESTION_NAMES, check_counts, read_choices
from maxsup_hf.data.columns import (
    check_strings,
    find_column,
    is_list_of_strings,
    is_string,
    read_column,
    report_columns,
)
from maxsup_hf.data.images import as_images, holds_images, to_rgb
from maxsup_hf.data.tags import TOKEN_NAMES
from maxsup_hf.prediction.model import Model, Row, logits_of
from maxsup_hf.prediction.texts import fill, go_on, rewrite
from maxsup_hf.scripts import multiple_choice, question_answering
from maxsup_hf.scripts.image_classification import IMAGE_NAMES
from maxsup_hf.scripts.text_classification import text_columns, tokenize
from maxsup_hf.scripts.token_classification import words_with_prefix_space

logger = logging.getLogger(__name__)

# ---- classes ----


def classify_texts(model: Model, rows: Dataset) -> list[Row]:
    columns = text_columns(rows, model.args.text_column_name, model.args.label_column_name or "")
    for column in columns:
        check_strings(rows, column, "text_column_name", "test")
    report_columns(rows, columns)
    encoded = tokenize(rows.select_columns(columns), columns, model.processor, model.length)
    found = _classes(model, model.logits(encoded, DataCollatorWithPadding(model.processor)), model.names)
    texts = [dict(zip(columns, row, strict=True)) for row in zip(*(rows[column] for column in columns), strict=True)]
    return [text | row for text, row in zip(texts, found, strict=True)]


def classify_images(model: Model, rows: Dataset) -> list[Row]:
    logits = model.logits(*_images(model, rows))
    found = _classes(model, logits, model.names)
    files = rows["file"] if "file" in rows.column_names else None
    return found if files is None else [{"file": file, **row} for file, row in zip(files, found, strict=True)]


def _images(model: Model, rows: Dataset) -> tuple[Dataset, Callable[[list[Row]], Any]]:
    """The images of the rows, and what makes a batch of them."""
    given = model.args.image_column_name
    column = find_column(rows, "image_column_name", given, fits=holds_images, names=IMAGE_NAMES)
    images = as_images(rows, column, "image_column_name", "test", model.args.test_file).select_columns(column)
    return images, lambda batch: model.processor([to_rgb(row[column]) for row in batch], return_tensors="pt")


def _classes(model: Model, logits: Tensor, names: Sequence[str]) -> list[Row]:
    """The most probable classes of each row, with their softmax probabilities."""
    if not torch.isfinite(logits.max(-1).values).all():
        raise ValueError("the model's logits are NaN or infinite; are its weights complete?")
    probabilities, classes = logits.softmax(-1).topk(min(model.args.top_k, len(names)))
    found = []
    for row_probabilities, row_classes in zip(probabilities.tolist(), classes.tolist(), strict=True):
        row: Row = {}
        for place, (probability, k) in enumerate(zip(row_probabilities, row_classes, strict=True), 1):
            suffix = "" if place == 1 else f"_{place}"
            row |= {f"prediction{suffix}": names[k], f"probability{suffix}": probability}
        found.append(row)
    return found


def choose(model: Model, rows: Dataset) -> list[Row]:
    args, label = model.args, model.args.label_column_name
    choices = [name.strip() for name in args.choices_column_name.split(",")] if args.choices_column_name else None
    taken = [label] if label else []
    if choices is None:
        choices = [find_column(rows, "choices_column_name", None, fits=is_list_of_strings, names=CHOICES_NAMES, taken=taken)]
    question = find_column(
        rows,
        "question_column_name",
        args.question_column_name,
        fits=is_string,
        names=QUESTION_NAMES,
        taken=[*taken, *choices],
    )
    check_strings(rows, question, "question_column_name", "test")
    listed = read_choices(rows, choices, "test")
    check_counts(listed, len(listed[0]), "test")
    # the collator expects labels, and the outputs do not depend on them
    columns = {"question": read_column(rows, question).to_pylist(), "choices": listed, "labels": [0] * len(rows)}
    encoded = multiple_choice.tokenize(Dataset.from_dict(columns), model.processor, model.length)
    logits = model.logits(encoded, DataCollatorForMultipleChoice(model.processor))
    best = logits.softmax(-1).max(-1)
    return [
        {"prediction": listed[i][k], "index": k, "probability": probability}
        for i, (k, probability) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    ]


# ---- tags, answers ----


def tag(model: Model, rows: Dataset) -> list[Row]:
    """One tag for each word; a word that is cut off gets none, which is an empty string."""
    column = find_column(
        rows, "tokens_column_name", model.args.tokens_column_name, fits=is_list_of_strings, names=TOKEN_NAMES,
        taken=[model.args.label_column_name or ""],
    )  # fmt: skip
    values = read_column(rows, column).to_pylist()
    sentences = [value.split() if isinstance(value, str) else value for value in values]
    words_with_prefix_space(model.processor)
    encoded = model.processor(sentences, is_split_into_words=True, truncation=True, max_length=model.length)
    inputs = Dataset.from_dict(dict(encoded))
    collate = DataCollatorWithPadding(model.processor)
    found: list[Row] = []
    for output in model.outputs(inputs, collate):
        for best in logits_of(output).argmax(-1).tolist():
            words = encoded.word_ids(len(found))
            tags = [""] * len(sentences[len(found)])
            for position, word in reversed(list(enumerate(words))):  # the first token of a word decides
                if word is not None:
                    tags[word] = model.names[best[position]]
            found.append({"words": sentences[len(found)], "prediction": tags})
    cut = sum("" in row["prediction"] for row in found)
    if cut:
        logger.warning("%d rows are longer than %d tokens: their last words have no tag", cut, model.length)
    return found


def answer(model: Model, rows: Dataset) -> list[Row]:
    args = model.args
    question = find_column(
        rows, "question_column_name", args.question_column_name, fits=is_string, names=question_answering.QUESTION_NAMES
    )
    context = find_column(
        rows, "context_column_name", args.context_column_name, fits=is_string, names=question_answering.CONTEXT_NAMES,
        taken=[question],
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


# ---- masks ----


def segment(model: Model, rows: Dataset) -> list[Row]:
    """The class of every pixel, as a PNG of the image's own size in a folder beside the output file."""
    folder = Path(model.args.output_file).with_suffix("")
    folder.mkdir(exist_ok=True)
    images, collate = _images(model, rows)
    (column,) = images.column_names
    files = rows["file"] if "file" in rows.column_names else [f"{i:06d}" for i in range(len(rows))]
    found: list[Row] = []
    for output in model.outputs(images, collate):
        for logits in logits_of(output):
            i = len(found)
            width, height = images[i][column].size
            scaled = torch.nn.functional.interpolate(logits[None].float(), (height, width), mode="bilinear")
            path = folder / Path(files[i]).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(scaled.argmax(1)[0].to(torch.uint8).cpu().numpy()).save(path)
            found.append({"file": files[i], "prediction": str(path)})
    return found


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
# How a class of transformers ends, and the task that it is for.
HEADS = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForConditionalGeneration": "sequence-to-sequence",
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
    raise ValueError(f"the model is a {', '.join(architectures) or 'model without a head'}; name its task with --task")
