"""Flags of the text tasks, and their tokenizer: named, the model's own, or trained on the data."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from maxsup_hf.data.arguments import flag
from maxsup_hf.data.columns import read_column
from maxsup_hf.data.files import loading
from maxsup_hf.scripts.common.arguments import ScriptArguments
from maxsup_hf.scripts.common.models import hub_options

logger = logging.getLogger(__name__)

VOCABULARY_SIZE = 4_000
DEFAULT_LENGTH = 512
CUT = "is_cut"  # whether a text was cut, a column that is only there until it is counted
NO_LIMIT = 1_000_000  # a tokenizer without a maximum length says 1e30


@dataclass
class TextArguments(ScriptArguments):
    """Flags of every text task."""

    tokenizer_name: str | None = flag("Tokenizer: a Hub id or a folder (default: that of the model).")
    max_seq_length: int | None = flag(
        "Maximum length of a text in tokens; the rest is cut off (default: what the model takes, else 512)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise ValueError(f"max_seq_length must be at least 1 token, got {self.max_seq_length}")


def set_up_text_task(
    args: TextArguments, config: PretrainedConfig | None, texts: Iterable[str], *, offsets: bool = False
) -> tuple[PreTrainedTokenizerBase, PretrainedConfig, int]:
    """Tokenizer, config (that of a tiny BERT if there is none) and maximum length in tokens of a task that reads texts.

    Args:
        config, texts, offsets: see `build_tokenizer`.

    Raises:
        ValueError: see `build_tokenizer` and `max_length`.
    """
    tokenizer = build_tokenizer(args, config, texts, offsets)
    config = config or default_config(tokenizer)
    return tokenizer, config, max_length(args, config, tokenizer)


def build_tokenizer(
    args: TextArguments, config: PretrainedConfig | None, texts: Iterable[str], offsets: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of `--tokenizer_name` or of the model; if there is neither, one trained on the training texts.

    Args:
        config: of the model if it has one already; its padding token is set to the tokenizer's, in place.
        texts: the training texts, read only to train a tokenizer.
        offsets: whether the task needs to know which characters a token stands for.

    Raises:
        ValueError: the tokenizer cannot be loaded or trained, cannot pad, or lacks offsets that the task needs.
    """
    argument = tokenizer_argument(args)
    if argument is None:
        size = vocabulary_size_of(config, VOCABULARY_SIZE)
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, size, has_token_types(config))
    else:
        tokenizer = _load_tokenizer(args, argument, offsets)
    if config is not None:
        config.pad_token_id = tokenizer.pad_token_id  # decoders classify at the last token that is not padding
    return tokenizer


def vocabulary_size_of(config: PretrainedConfig | None, default: int) -> int:
    """How many tokens a tokenizer that is trained for a model has.

    Raises:
        ValueError: the model does not read texts.
    """
    if config is None:
        return default
    size = getattr(config, "vocab_size", None)
    if size is None:
        raise ValueError(f"config_name: {config.model_type} models do not read texts; name a model that does")
    return size


def _load_tokenizer(args: TextArguments, argument: str, offsets: bool) -> PreTrainedTokenizerBase:
    source = getattr(args, argument)
    with loading(argument, source):
        tokenizer = AutoTokenizer.from_pretrained(source, **hub_options(args))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # decoders often have no padding token; padding is masked, so any will do
    if tokenizer.pad_token is None:
        raise ValueError(
            f"{argument}: the tokenizer of {source!r} has neither a padding token nor an end token to pad with; name "
            "another one with --tokenizer_name"
        )
    if offsets and not tokenizer.is_fast:
        raise ValueError(
            f"{argument}: the tokenizer of {source!r} is written in Python and does not say which characters a token "
            "stands for, which this task needs; name one that has a tokenizer.json with --tokenizer_name"
        )
    return tokenizer


def has_token_types(config: PretrainedConfig | None) -> bool:
    """Whether a model takes `token_type_ids`, as the default one does."""
    return getattr(config, "type_vocab_size", 2) > 1


def tokenizer_argument(args: TextArguments) -> str | None:
    """The flag that a tokenizer is loaded by; `None` if there is none, or a local config without a tokenizer beside it."""
    argument = next((name for name in ("tokenizer_name", "model_name_or_path", "config_name") if getattr(args, name)), None)
    if argument != "config_name" or not os.path.exists(args.config_name or ""):
        return argument
    files = os.listdir(args.config_name) if os.path.isdir(args.config_name or "") else []
    has_tokenizer = any(file.startswith(("token", "vocab", "spiece", "sentencepiece")) for file in files)
    return argument if has_tokenizer else None


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, token_types: bool = True) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which can encode any text, with BERT's layout of single texts and pairs.

    Args:
        token_types: return `token_type_ids`, which tell the texts of a pair apart.

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
    logger.info("trained a tokenizer of %d tokens on the training texts", tokenizer.get_vocab_size())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=DEFAULT_LENGTH,
        model_input_names=["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
    )


def default_config(tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The tiny BERT of the text tasks."""
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=DEFAULT_LENGTH,
        pad_token_id=tokenizer.pad_token_id,
    )


def max_length(args: Any, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum length of a text in tokens: `--max_seq_length`, else what model and tokenizer take, else 512.

    Raises:
        ValueError: `--max_seq_length` is more than the model takes, or leaves no room for words.
    """
    stated = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    limit = length_limit("max_seq_length", args.max_seq_length, stated)
    length = args.max_seq_length or limit or DEFAULT_LENGTH
    special = tokenizer.num_special_tokens_to_add()
    if length <= special:
        raise ValueError(
            f"max_seq_length: no word is left in texts of {length} tokens, of which {special} are special; raise it, or "
            "take another model"
        )
    return length


def length_limit(argument: str, asked: int | None, stated: Iterable[int | None]) -> int | None:
    """The smallest of the stated maximum lengths in tokens; `None` if there is none.

    Args:
        argument: the flag that asks for a length, for messages.
        asked: its value.
        stated: maximum lengths of model and tokenizer; absent or very large ones are not limits.

    Raises:
        ValueError: `asked` is more than the limit.
    """
    limit = min((n for n in stated if n and n < NO_LIMIT), default=None)
    if limit and asked and asked > limit:
        raise ValueError(f"{argument}: {asked} tokens are more than the {limit} that the model takes; lower --{argument}")
    return limit


# ---- texts that are cut ----


def with_cut(encoded: Any, length: int, column: str = CUT) -> Any:
    """Add a column that says which texts, or pairs of texts, were cut.

    Args:
        encoded: what a tokenizer returned, with truncation. One that is written in Python does not say what it cut: then
            texts that reach the length count as cut.
        length: in tokens.
    """
    if encoded.is_fast:
        encoded[column] = [bool(encoding.overflowing) for encoding in encoded.encodings]
    else:
        encoded[column] = [len(ids) >= length for ids in encoded["input_ids"]]
    return encoded


def report_cut(
    dataset: Dataset, length: int, split: str, what: str = "texts", argument: str = "max_seq_length", column: str = CUT
) -> Dataset:
    """Log the share of texts that are cut, and return the data without the column that says so."""
    values = read_column(dataset, column).combine_chunks()
    while isinstance(values, pa.ListArray):  # a list of choices in each row
        values = values.flatten()
    cut, count = pc.sum(values).as_py() or 0, len(values)
    logger.log(
        logging.WARNING if cut else logging.INFO,
        "%s data: %d of %d %s (%.1f%%) are longer than %s=%d tokens and are cut",
        split, cut, count, what, 100 * cut / count, argument, length,
    )  # fmt: skip
    return dataset.remove_columns(column)
