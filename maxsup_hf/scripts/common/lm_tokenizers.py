"""Tokenizers of language models: for models that generate text, and for models that fill in masked tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import processors
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maxsup_hf.scripts.common.tokenizers import (
    VOCABULARY_SIZE,
    TextArguments,
    build_tokenizer,
    has_token_types,
    tokenizer_argument,
    train_tokenizer,
    vocabulary_size_of,
)

END, MASK = "[SEP]", "[MASK]"


def build_generator_tokenizer(
    args: TextArguments,
    config: PretrainedConfig | None,
    texts: Iterable[str],
    *,
    vocabulary_size: int = VOCABULARY_SIZE,
    ends: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer of `--tokenizer_name` or of the model; if there is neither, one trained for a model that generates.

    A trained one puts nothing before a text, because a prompt is to be continued. Its end token is `[SEP]`.

    Args:
        config: of the model if it has one already. Its padding token is set to the tokenizer's, in place; with a trained
            tokenizer, all its special tokens are.
        texts: the training texts, read only to train a tokenizer.
        vocabulary_size: of a trained tokenizer if there is no config.
        ends: whether a trained tokenizer puts the end token after every text, as encoder-decoders need it.

    Raises:
        ValueError: see `build_tokenizer`; or the tokenizer has more tokens than the model.
    """
    if tokenizer_argument(args) is not None:
        return check_vocabulary(build_tokenizer(args, config, ()), config)
    tokenizer = train_tokenizer(texts, vocabulary_size_of(config, vocabulary_size), token_types=False)
    tokenizer.eos_token = END
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}" if ends else "$A",
        pair=f"$A $B {END}" if ends else "$A $B",
        special_tokens=[(END, tokenizer.eos_token_id)],
    )
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
    """As `build_generator_tokenizer`, but for a model that fills in masked tokens: BERT's layout, and a mask token.

    Raises:
        ValueError: see `build_tokenizer`; or the tokenizer has no mask token, or more tokens than the model.
    """
    argument = tokenizer_argument(args)
    if argument is None:
        size = vocabulary_size_of(config, vocabulary_size) - 1  # without the mask token
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, size, has_token_types(config))
        tokenizer.add_special_tokens({"mask_token": MASK})
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
    """Return the tokenizer; raise ValueError if it has more tokens than the model has embeddings."""
    size = getattr(config, "vocab_size", None)
    if size is not None and len(tokenizer) > size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, more than the model's vocab_size of {size}; name the model's own "
            "with --tokenizer_name"
        )
    return tokenizer
