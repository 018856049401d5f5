"""Train or fine-tune a tagger of words: named entities, parts of speech.

Without arguments: a tiny transformer that finds territories, languages and currencies in lists of names. Nothing is
downloaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from maxsup_hf.data.arguments import flag
from maxsup_hf.data.builtin_names import tagged_names
from maxsup_hf.data.columns import read_column, report_columns
from maxsup_hf.data.labels import pretrained_classes, set_aside_unlabelled
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.splits import hold_out_and_limit
from maxsup_hf.data.tags import CONLL_FORMATS, encode_tags, find_tag_columns
from maxsup_hf.losses import IGNORE_INDEX
from maxsup_hf.metrics import ClassScores, entity_f1, is_bio, per_class, per_entity
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.models import build_model, load_config, set_classes
from maxsup_hf.scripts.common.tokenizers import TextArguments, report_cut, set_up_text_task, with_cut
from maxsup_hf.trainer.trainer import MaxSupTrainer

logger = logging.getLogger(__name__)

TASK = "token-classification"


@dataclass
class TokenClassificationArguments(TextArguments):
    """Flags of token classification."""

    tokens_column_name: str | None = flag("Column of the words, a list in each row (default: found by its type or name).")
    label_column_name: str | None = flag(
        "Column of the tags, a list of names or indices in each row (default: found by its type or name)."
    )


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(TokenClassificationArguments, argv, TASK, recipes.TEXTS, classifies=True)
    config = load_config(args)
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        splits, names = _load_sentences(args, config)
        texts = (" ".join(words) for words in read_column(first_split(splits)[1], "tokens").to_pylist())
        tokenizer, config, length = set_up_text_task(args, config, texts, offsets=True)
        rows = splits
        splits = {split: _tokenize(dataset, tokenizer, length, split) for split, dataset in rows.items()}
    config = set_classes(config, names)
    model = build_model(AutoModelForTokenClassification, config, args, training_args.seed)
    trainer = MaxSupTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=TagMetrics(names),
        preprocess_logits_for_metrics=run.only_logits,
    )
    return run.make_job(
        args, trainer, splits, TASK, "tagged names in 20 languages from Unicode CLDR",
        rows=rows, tokens_column_name="tokens", label_column_name="labels", max_seq_length=length,
    )  # fmt: skip


def _load_sentences(args: TokenClassificationArguments, config: PretrainedConfig | None) -> tuple[Splits, list[str]]:
    splits = load_splits(args, tagged_names, formats=CONLL_FORMATS)
    first, rows = first_split(splits)
    columns = find_tag_columns(rows, args.tokens_column_name, args.label_column_name, first)
    report_columns(rows, columns)
    splits = set_aside_unlabelled(splits, args, columns[1], {columns[0]: "tokens"})
    splits, names = encode_tags(splits, *columns, pretrained_classes(config), only_these=not args.needs_training_data)
    return hold_out_and_limit(splits, args), names


def _tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, split: str) -> Dataset:
    """Token ids, and labels of the same length: the first token of a word has its tag, the others are ignored."""
    words_with_prefix_space(tokenizer)

    def encode(batch: dict[str, list[Any]]) -> Any:
        encoded = tokenizer(batch["tokens"], is_split_into_words=True, truncation=True, max_length=length)
        encoded["labels"] = [_align(tags, encoded.word_ids(i)) for i, tags in enumerate(batch["labels"])]
        return with_cut(encoded, length)

    tokenized = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="tokenizing")
    tokenized = report_cut(tokenized, length, split)
    given, kept = _count_labelled(dataset), _count_labelled(tokenized)
    if kept == 0:
        raise ValueError(f"max_seq_length: no word of the {split} data is left in texts of {length} tokens; raise it")
    if kept < given:
        logger.warning(
            "%d of the %d words of the %s data have no token (they are cut off, or the tokenizer drops them): they are "
            "neither trained on nor evaluated", given - kept, given, split,
        )  # fmt: skip
    return tokenized


def words_with_prefix_space(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a byte-level tokenizer encode every word like one in the middle of a text, and not like the first one."""
    pre_tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer).pre_tokenizer
    if isinstance(pre_tokenizer, ByteLevel):
        pre_tokenizer.add_prefix_space = True


def _count_labelled(dataset: Dataset) -> int:
    return sum(len(tags) - tags.count(IGNORE_INDEX) for tags in dataset["labels"])


def _align(tags: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """(L,) labels of tokens, given the tags of the words and the word that each token belongs to."""
    previous = [None, *words]
    return [IGNORE_INDEX if word is None or word == previous[i] else tags[word] for i, word in enumerate(words)]


class TagMetrics:
    """`compute_metrics`: those of classification over the words, and of entities if the tags are BIO tags.

    Args:
        names: of the tags.

    Attributes:
        scores: of each kind of entity in the last evaluation, or of each tag if they are not BIO tags.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.kinds = sorted({name[2:] for name in names if name != "O"}) if is_bio(names) else []
        self.scores: list[ClassScores] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        counted, predicted = labels != IGNORE_INDEX, logits.argmax(-1)
        found = run.classification_metrics(EvalPrediction(logits[counted], labels[counted]))
        if not self.kinds:
            self.scores = per_class(labels[counted], predicted[counted], self.names)
            return found
        guesses, truths = _tags(predicted, counted, self.names), _tags(labels, counted, self.names)
        self.scores = per_entity(guesses, truths, self.kinds)
        return found | entity_f1(guesses, truths)


def _tags(rows: NDArray, counted: NDArray, names: Sequence[str]) -> list[list[str]]:
    """The names of the tags that count, row by row."""
    return [[names[i] for i in row[mask]] for row, mask in zip(rows, counted, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train token-classification`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
