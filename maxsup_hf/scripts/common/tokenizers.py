"""The tokenizer of a text task: named, the model's own, or trained on the data."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from maxsup_hf.data.arguments import flag
from maxsup_hf.data.loading import loading
from maxsup_hf.scripts.common.arguments import ScriptArguments
from maxsup_hf.scripts.common.models import hub_options

logger = logging.getLogger(__name__)

VOCABULARY_SIZE = 4_000
DEFAULT_LENGTH = 512
NO_LIMIT = 1_000_000  # a tokenizer that knows no longest text says 1e30


@dataclass
class TextArguments(ScriptArguments):
    """Flags of every task on text."""

    tokenizer_name: str | None = flag("Tokenizer: a Hub id or a folder (default: that of the model).")
    max_seq_length: int | None = flag(
        "Longest text in tokens; the rest is cut off (default: what the model takes, else 512)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise ValueError(f"max_seq_length must be at least 1 token, got {self.max_seq_length}")


def build_tokenizer(
    args: TextArguments, config: PretrainedConfig | None, texts: Iterable[str], offsets: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named or comes with the model; where there is none, one trained on the training texts.

    Args:
        config: of the model where it has one; learns the tokenizer's padding token, in place.
        texts: the training texts, read only where a tokenizer is trained.
        offsets: whether the task must know which characters a token stands for.

    Raises:
        ValueError: the tokenizer cannot be loaded or trained, cannot pad, or knows no offsets where they are needed.
    """
    tokenizer: PreTrainedTokenizerBase
    argument = tokenizer_argument(args)
    if argument is None:
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
        if offsets and not tokenizer.is_fast:
            raise ValueError(
                f"{argument}: the tokenizer of {source!r} is written in Python and does not say which characters a token "
                "stands for, which this task needs; name one with a tokenizer.json with --tokenizer_name"
            )
    if config is not None:
        config.pad_token_id = tokenizer.pad_token_id  # decoders classify at the last token that is not padding
    return tokenizer


def tokenizer_argument(args: TextArguments) -> str | None:
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


def max_length(args: TextArguments, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest text in tokens: what is asked for, else what model and tokenizer take, else 512.

    Raises:
        ValueError: more is asked for than the model takes.
    """
    stated = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    limit = min((n for n in stated if n and n < NO_LIMIT), default=None)
    if limit and args.max_seq_length and args.max_seq_length > limit:
        raise ValueError(f"max_seq_length: {args.max_seq_length} tokens are more than the {limit} that the model takes")
    return args.max_seq_length or limit or DEFAULT_LENGTH
