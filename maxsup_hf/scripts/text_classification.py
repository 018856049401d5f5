"""Train or fine-tune a text classifier, of single texts or of pairs.

Without arguments: a tiny transformer that tells which language a name is in. Nothing is downloaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from maxsup_hf.data.arguments import flag
from maxsup_hf.data.builtin import names_in_languages
from maxsup_hf.data.columns import check_strings, find_column, is_string, read_texts, report_columns
from maxsup_hf.data.labels import classification_splits, find_label_column
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.models import build_model, load_config, set_classes
from maxsup_hf.scripts.common.tokenizers import TextArguments, report_cut, set_up_text_task, with_cut
from maxsup_hf.trainer.callbacks import FeatureGeometryCallback
from maxsup_hf.trainer.trainer import MaxSupTrainer

logger = logging.getLogger(__name__)

TASK = "text-classification"
# Columns that are read together, as the two texts of a pair.
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
    ("title", "text"),
    ("title", "content"),
    ("title", "body"),
    ("subject", "body"),
)
TEXT_NAMES = ("text", "sentence", "content", "review", "utterance", "query", "question", "title", "premise")


@dataclass
class TextClassificationArguments(TextArguments):
    """Flags of text classification."""

    text_column_name: str | None = flag(
        "Column of the texts, or two comma-separated columns for pairs (default: found by its type or name)."
    )
    log_feature_geometry: bool = flag(run.GEOMETRY_HELP, False)


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(TextClassificationArguments, argv, TASK, recipes.TEXTS, classifies=True)
    config = load_config(args)
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        splits, columns, names = _load_texts(args, config)
        tokenizer, config, length = set_up_text_task(args, config, read_texts(first_split(splits)[1], columns))
        rows = splits
        splits = {split: tokenize(dataset, columns, tokenizer, length, split) for split, dataset in rows.items()}
    config = set_classes(config, names)
    model = build_model(AutoModelForSequenceClassification, config, args, training_args.seed)
    trainer = MaxSupTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=run.ClassificationMetrics(names),
        preprocess_logits_for_metrics=run.only_logits,
    )
    if args.log_feature_geometry:
        trainer.add_callback(FeatureGeometryCallback(trainer))
    return run.make_job(
        args, trainer, splits, TASK, "names in 20 languages from Unicode CLDR", classifies_rows=True,
        rows=rows, text_column_name=",".join(columns), label_column_name="labels", max_seq_length=length,
    )  # fmt: skip


def _load_texts(args: TextClassificationArguments, config: PretrainedConfig | None) -> tuple[Splits, list[str], list[str]]:
    splits = load_splits(args, names_in_languages)
    first, rows = first_split(splits)
    label_column = find_label_column(rows, args.label_column_name, first)
    columns = text_columns(rows, args.text_column_name, label_column, first)
    report_columns(rows, [*columns, label_column])
    for split, dataset in splits.items():
        for column in columns:
            check_strings(dataset, column, "text_column_name", split)
    splits, names = classification_splits(args, splits, columns, label_column, config)
    return splits, columns, names


def text_columns(dataset: Dataset, given: str | None, label_column: str, split: str = "train") -> list[str]:
    """The column of the texts, or the two columns of a pair."""
    named: list[str | None] = [name.strip() for name in given.split(",")] if given else [None]
    if len(named) > 2:
        raise ValueError(f"text_column_name: expected one column or two comma-separated columns, got {given!r}")
    if given is None and (pair := _find_pair(dataset, label_column)):
        logger.info(
            "text_column_name: %s (found in the data, used as a pair; name one column to use it alone)", ",".join(pair)
        )
        return pair
    found: list[str] = []
    for name in named:
        taken = [label_column, *found]
        found.append(
            find_column(dataset, "text_column_name", name, fits=is_string, names=TEXT_NAMES, taken=taken, split=split)
        )
    return found


def _find_pair(train: Dataset, label_column: str) -> list[str] | None:
    texts = {name.lower(): name for name in train.column_names if name != label_column and is_string(train.features[name])}
    return next(([texts[a], texts[b]] for a, b in PAIRS if a in texts and b in texts), None)


def tokenize(
    dataset: Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, split: str = "test"
) -> Dataset:
    """Replace the texts by token ids. Padding is left to the collator, which pads to the longest text of a batch."""

    def encode(batch: dict[str, list[str]]) -> Any:
        return with_cut(tokenizer(*(batch[column] for column in columns), truncation=True, max_length=length), length)

    unused = [name for name in dataset.column_names if name != "labels"]
    return report_cut(dataset.map(encode, batched=True, remove_columns=unused, desc="tokenizing"), length, split)


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train text-classification`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
