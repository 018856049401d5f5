"""Train or fine-tune a text classifier, of single texts or of pairs.

Without arguments: a tiny transformer that tells in which language a name is, with nothing downloaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from maxsup_hf.checks import read_column
from maxsup_hf.scripts.body import run
from maxsup_hf.scripts.body.arguments import ScriptArguments, flag, parse
from maxsup_hf.scripts.body.columns import check_column, check_not_missing, find_column, is_string
from maxsup_hf.scripts.body.embedded import names_in_languages
from maxsup_hf.scripts.body.labels import classification_splits, find_label_column
from maxsup_hf.scripts.body.loading import Splits, load_splits, loading
from maxsup_hf.scripts.body.models import build_model, hub_options, load_config, set_classes
from maxsup_hf.trainer import MaxSupTrainer

logger = logging.getLogger(__name__)

TASK = "text-classification"
TEXT_NAMES = ("text", "sentence", "content", "review", "utterance", "query", "question", "title", "premise")

EVERY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_steps": 50}
FROM_SCRATCH = {
    **EVERY_EPOCH,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
}
EMBEDDED = {**FROM_SCRATCH, "num_train_epochs": 4, "save_total_limit": 2}
FINE_TUNING = {
    **EVERY_EPOCH,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 5e-5,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
}
VOCABULARY_SIZE = 4_000
DEFAULT_LENGTH = 512
NO_LIMIT = 1_000_000  # a tokenizer that knows no longest text says 1e30


@dataclass
class TextClassificationArguments(ScriptArguments):
    """Flags of text classification."""

    text_column_name: str | None = flag(
        "Column of the texts; two names with a comma between them for pairs (default: found by its type or name)."
    )
    tokenizer_name: str | None = flag("Tokenizer: a Hub id or a folder (default: that of the model).")
    max_seq_length: int | None = flag(
        "Longest text in tokens; the rest is cut off (default: what the model takes, else 512)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise ValueError(f"max_seq_length must be at least 1 token, got {self.max_seq_length}")


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(
        TextClassificationArguments,
        argv,
        task=TASK,
        embedded=EMBEDDED,
        from_scratch=FROM_SCRATCH,
        fine_tuning=FINE_TUNING,
    )
    config = load_config(args)
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        splits, columns, names = _load_texts(args, config)
        tokenizer = _tokenizer(args, config, splits["train"], columns)
        config = set_classes(config or _default_config(tokenizer), names)
        length = _max_length(args, config, tokenizer)
        splits = {split: _tokenize(dataset, columns, tokenizer, length) for split, dataset in splits.items()}
    model = build_model(AutoModelForSequenceClassification, config, args, training_args.seed)
    trainer = MaxSupTrainer(
        model,
        training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=run.classification_metrics,
        preprocess_logits_for_metrics=run.only_logits,
    )
    return run.Job(trainer, splits.get("test"), run.card(args, TASK, "names in 20 languages from Unicode CLDR"))


def _load_texts(args: TextClassificationArguments, config: PretrainedConfig | None) -> tuple[Splits, list[str], list[str]]:
    splits = load_splits(args, names_in_languages)
    label_column = find_label_column(splits["train"], args.label_column_name)
    columns = _text_columns(splits["train"], args.text_column_name, label_column)
    for split, dataset in splits.items():
        for column in columns:
            _check_texts(dataset, column, split)
    splits, names = classification_splits(args, splits, columns, label_column, config)
    return splits, columns, names


def _text_columns(train: Dataset, given: str | None, label_column: str) -> list[str]:
    """The column of the texts, or the two columns of a pair."""
    named: list[str | None] = [name.strip() for name in given.split(",")] if given else [None]
    if len(named) > 2:
        raise ValueError(f"text_column_name: expected one column or two with a comma between them, got {given!r}")
    return [
        find_column(train, "text_column_name", name, fits=is_string, names=TEXT_NAMES, taken=[label_column])
        for name in named
    ]


def _check_texts(dataset: Dataset, column: str, split: str) -> None:
    check_column(dataset, column, "text_column_name", split)
    feature = dataset.features[column]
    check_not_missing(dataset, column, split)
    if not is_string(feature):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise TypeError(f"text_column_name: column {column!r} of the {split} data must hold strings, not {kind}")


def _tokenizer(
    args: TextClassificationArguments, config: PretrainedConfig | None, train: Dataset, columns: Sequence[str]
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named or comes with the model; where there is none, one trained on the training texts."""
    tokenizer: PreTrainedTokenizerBase
    argument = _tokenizer_argument(args)
    if argument is None:
        texts = (text for column in columns for text in read_column(train, column).to_pylist())
        vocabulary_size = config.vocab_size if config else VOCABULARY_SIZE
        tokenizer = train_tokenizer(texts, vocabulary_size, getattr(config, "type_vocab_size", 2) > 1)
        logger.info("trained a tokenizer of %d tokens on the training texts", len(tokenizer))
    else:
        source = getattr(args, argument)
        with loading(argument, source):
            tokenizer = AutoTokenizer.from_pretrained(source, **hub_options(args))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # decoders come without one; padding is masked, whatever it is
        if tokenizer.pad_token is None:
            raise ValueError(f"{argument}: the tokenizer of {source!r} has no padding token, nor an end token to pad with")
    if config is not None:
        config.pad_token_id = tokenizer.pad_token_id  # decoders classify at the last token that is not padding
    return tokenizer


def _tokenizer_argument(args: TextClassificationArguments) -> str | None:
    """The flag whose value a tokenizer is loaded from; `None` where there is no flag, or a config without a tokenizer."""
    argument = next((name for name in ("tokenizer_name", "model_name_or_path", "config_name") if getattr(args, name)), None)
    if argument == "config_name" and os.path.isfile(args.config_name or ""):
        return None
    if argument == "config_name" and os.path.isdir(args.config_name or ""):
        files = os.listdir(args.config_name)
        return argument if any(file.startswith(("token", "vocab", "spiece", "sentencepiece")) for file in files) else None
    return argument


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, token_types: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (no text is unknown to it) with BERT's layout of single texts and pairs.

    Args:
        token_types: give the model `token_type_ids`, which tell the texts of a pair apart.

    Raises:
        ValueError: the vocabulary is too small for the 256 bytes and three special tokens.
    """
    special = ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary_size < len(alphabet) + len(special):
        raise ValueError(
            f"config_name: vocab_size must be at least {len(alphabet) + len(special)} for a tokenizer trained on the data, "
            f"got {vocabulary_size}; raise it, or name a tokenizer with --tokenizer_name"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=DEFAULT_LENGTH,
        model_input_names=["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
    )


def _default_config(tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=DEFAULT_LENGTH,
        pad_token_id=tokenizer.pad_token_id,
    )


def _max_length(args: TextClassificationArguments, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    stated = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    limit = min((n for n in stated if n and n < NO_LIMIT), default=None)
    if limit and args.max_seq_length and args.max_seq_length > limit:
        raise ValueError(f"max_seq_length: {args.max_seq_length} tokens are more than the {limit} that the model takes")
    return args.max_seq_length or limit or DEFAULT_LENGTH


def _tokenize(dataset: Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Token ids beside the labels. Padding is left to the collator, which pads to the longest text of a batch."""

    def encode(batch: dict[str, list[str]]) -> Any:
        return tokenizer(*(batch[column] for column in columns), truncation=True, max_length=length)

    return dataset.map(encode, batched=True, remove_columns=list(columns), desc="tokenizing")


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train text-classification`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
