"""What tasks that write text share: tokenizers in the layouts that they need."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tokenizers import processors
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maxsup_hf.scripts.common.tokenizers import (
    VOCABULARY_SIZE,
    TextArguments,
    build_tokenizer,
    tokenizer_argument,
    train_tokenizer,
)

logger = logging.getLogger(__name__)

END, MASK = "[SEP]", "[MASK]"


def build_generator_tokenizer(
    args: TextArguments,
    config: PretrainedConfig | None,
    texts: Iterable[str],
    *,
    vocabulary_size: int = VOCABULARY_SIZE,
    ends: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named or comes with the model; where there is none, one trained for a model that writes.

    A trained one puts nothing before a text, for a prompt is to be continued, and its end token is `[SEP]`.

    Args:
        config: of the model where it has one; learns the tokenizer's padding token, and all special tokens of a trained one.
        texts: the training texts, read only where a tokenizer is trained.
        vocabulary_size: of a trained one where there is no config.
        ends: whether a trained one puts the end token behind every text, as encoder-decoders need it.

    Raises:
        ValueError: see `build_tokenizer`; or it has more tokens than the model.
    """
    if tokenizer_argument(args) is not None:
        return check_vocabulary(build_tokenizer(args, config, ()), config)
    tokenizer = train_tokenizer(texts, config.vocab_size if config else vocabulary_size, token_types=False)
    tokenizer.eos_token = END
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}" if ends else "$A",
        pair=f"$A $B {END}" if ends else "$A $B",
        special_tokens=[(END, tokenizer.eos_token_id)],
    )
    logger.info("trained a tokenizer of %d tokens on the training texts", len(tokenizer))
    if config is not None:
        config.pad_token_id = config.decoder_start_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = config.forced_eos_token_id = config.forced_bos_token_id = None
    return tokenizer


def build_mask_tokenizer(
    args: TextArguments,
    config: PretrainedConfig | None,
    texts: Iterable[str],
    *,
    vocabulary_size: int = VOCABULARY_SIZE,
) -> PreTrainedTokenizerBase:
    """As `build_generator_tokenizer`, for a model that fills in masked tokens: BERT's layout, and a mask token.

    Raises:
        ValueError: see `build_tokenizer`; or it has no mask token, or more tokens than the model.
    """
    argument = tokenizer_argument(args)
    if argument is None:
        size = (config.vocab_size if config else vocabulary_size) - 1
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, size, getattr(config, "type_vocab_size", 2) > 1)
        tokenizer.add_special_tokens({"mask_token": MASK})
        logger.info("trained a tokenizer of %d tokens on the training texts", len(tokenizer))
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
        return tokenizer
    tokenizer = build_tokenizer(args, config, ())
    if tokenizer.mask_token is None:
        raise ValueError(
            f"{argument}: the tokenizer of {getattr(args, argument)!r} has no mask token, which --mlm needs; leave --mlm "
            "out to train a causal model, or name another tokenizer with --tokenizer_name"
        )
    return check_vocabulary(tokenizer, config)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig | None) -> PreTrainedTokenizerBase:
    """Raises ValueError where the tokenizer has more tokens than the model has embeddings."""
    size = getattr(config, "vocab_size", None)
    if size is not None and len(tokenizer) > size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, more than the model's vocab_size of {size}")
    return tokenizer
