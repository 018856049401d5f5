"""Train or fine-tune a language model, causal or masked (--mlm).

Without arguments: a tiny Llama (with --mlm: a tiny BERT) on the Python language reference. Nothing is downloaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from maxsup_hf.data.arguments import flag, no_flag
from maxsup_hf.data.builtin_texts import python_documentation
from maxsup_hf.data.columns import (
    check_strings,
    find_column,
    identifier_columns,
    is_string,
    read_column,
    read_texts,
    report_columns,
)
from maxsup_hf.data.conversations import conversation_columns
from maxsup_hf.data.files import TEXT_FORMATS
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.splits import SPLIT_SEED, limit_rows
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.lm_tokenizers import build_generator_tokenizer, build_mask_tokenizer
from maxsup_hf.scripts.common.models import build_model, load_config
from maxsup_hf.scripts.common.perplexity import PerplexityMixin
from maxsup_hf.scripts.common.tokenizers import TextArguments, default_config, length_limit
from maxsup_hf.trainer.trainer import MaxSupTrainer

logger = logging.getLogger(__name__)

TASK = "language-modeling"
TEXT_NAMES = ("text", "content", "document", "sentence", "article", "body", "code")

FROM_SCRATCH = {
    **recipes.FROM_SCRATCH,
    "num_train_epochs": 4,
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 32,
    "lr_scheduler_type": "cosine",
}
FINE_TUNING = {**recipes.FINE_TUNING, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
RECIPES = recipes.Recipes(FROM_SCRATCH, FROM_SCRATCH, FINE_TUNING)

VOCABULARY_SIZE = 2_000
DEFAULT_BLOCK = 128  # for the default models
LONGEST_BLOCK = 1024  # for models that take more, unless --block_size asks for it: memory grows with it


@dataclass
class LanguageModelingArguments(TextArguments):
    """Flags of language modeling."""

    mlm: bool = flag("Train a masked language model (BERT) instead of a causal one (GPT).", False)
    mlm_probability: float = flag("Share of the tokens to predict, with --mlm.", 0.15)
    text_column_name: str | None = flag("Column of the texts (default: found by its type or name).")
    block_size: int | None = flag(
        "Texts are joined and cut into blocks of this many tokens (default: what the model takes, at most 1024)."
    )
    label_column_name: str | None = no_flag()
    max_seq_length: int | None = no_flag()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability must lie between 0 and 1 (both excluded), got {self.mlm_probability}")
        if self.block_size is not None and self.block_size < 2:
            raise ValueError(f"block_size must be at least 2 tokens, got {self.block_size}")


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(LanguageModelingArguments, argv, TASK, RECIPES)
    config = load_config(args)
    if config is not None and not args.mlm:
        _check_causal(config, args)
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        splits, column = _load_texts(args)
        build = build_mask_tokenizer if args.mlm else build_generator_tokenizer
        tokenizer = build(args, config, read_texts(first_split(splits)[1], [column]), vocabulary_size=VOCABULARY_SIZE)
        block = _block_size(args, config, tokenizer)
        config = config or (default_config(tokenizer) if args.mlm else default_llama(tokenizer, block))
        rows = splits
        splits = {split: _pack(dataset, column, tokenizer, block, split) for split, dataset in rows.items()}
        splits = limit_rows(_hold_out_the_end(splits, args.train_val_split), args)
        if args.mlm:
            splits = {split: data if split == "train" else _mask(data, tokenizer, args) for split, data in splits.items()}
    if training_args.do_predict and args.mlm and "test" in rows:
        _check_masks(rows["test"], column, tokenizer)
    model = build_model(AutoModelForMaskedLM if args.mlm else AutoModelForCausalLM, config, args, training_args.seed)
    trainer = LanguageModelTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=_masking_collator(tokenizer, args) if args.mlm else causal_collator,
    )
    task = "fill-mask" if args.mlm else "text-generation"
    return run.make_job(
        args, trainer, splits, task, "reference of the Python language",
        rows=rows, text_column_name=column, max_seq_length=block,
    )  # fmt: skip


class LanguageModelTrainer(PerplexityMixin, MaxSupTrainer):
    """MaxSupTrainer with the perplexity."""


# ---- data ----


def _load_texts(args: LanguageModelingArguments) -> tuple[Splits, str]:
    splits = load_splits(args, python_documentation, formats=TEXT_FORMATS)
    first, rows = first_split(splits)
    names = rows.column_names
    chats = conversation_columns(names)
    if chats and args.text_column_name is None and TEXT_NAMES[0] not in names:
        raise ValueError(
            f"the {first} data has the columns {', '.join(chats)}, which `maxsup-hf train sft` trains on; for language "
            "modeling name a column of texts with --text_column_name"
        )
    given = args.text_column_name
    column = find_column(rows, "text_column_name", given, fits=is_string, names=TEXT_NAMES, split=first)
    report_columns(rows, [column])
    for split, dataset in splits.items():
        check_strings(dataset, column, "text_column_name", split)
        splits[split] = dataset.select_columns([column, *identifier_columns(dataset, [column])])
    return splits, column


def _pack(dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, block: int, split: str) -> Dataset:
    """Join all texts, each with an end token, and cut them into blocks; an incomplete block at the end is dropped.

    Returns:
        One column `input_ids` of `block` tokens a row.
    """
    end = tokenizer.eos_token_id

    def with_end(ids: list[int]) -> list[int]:
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        # verbose=False: texts longer than the model takes need no warning, because they are cut into blocks.
        texts = tokenizer(batch[column], verbose=False)["input_ids"]
        return {"input_ids": [with_end(ids) for ids in texts]}

    tokenized = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="tokenizing")
    tokens = pc.list_flatten(read_column(tokenized, "input_ids")).cast(pa.int32()).to_numpy()
    count = len(tokens) // block
    if count == 0:
        raise ValueError(
            f"block_size: the {split} data has {len(tokens)} tokens, too few for one block of {block}; lower --block_size "
            "or add text"
        )
    left = len(tokens) - count * block
    logger.info("%s data: %d tokens in %d blocks of %d; the last %d are left out", split, len(tokens), count, block, left)
    blocks = pa.FixedSizeListArray.from_arrays(pa.array(tokens[: count * block]), block)
    return Dataset(pa.table({"input_ids": blocks.cast(pa.list_(pa.int32()))}))


def _check_masks(rows: Dataset, column: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if there is nothing to predict in a text, for `--do_predict`."""
    mask = tokenizer.mask_token
    row = next((i for i, text in enumerate(rows[column]) if mask not in text), None)
    if row is not None:
        raise ValueError(
            f"do_predict: with --mlm the tokens at each {mask} of the test texts are predicted, and row {row} has none; put "
            f"{mask} into the texts, or leave do_predict out"
        )


def _hold_out_the_end(splits: Splits, share: float) -> Splits:
    """If there is no validation data, take the last blocks of the training data.

    Not random ones: their neighbours, blocks of the same text, would be trained on, and a data set may be a single text.
    """
    if "validation" in splits or "train" not in splits:
        return splits
    train = splits["train"]
    if len(train) < 2:
        raise ValueError(
            "block_size: the training data is one block, too little to hold one out for validation; lower --block_size, or "
            "add text or validation data"
        )
    cut = min(max(1, round(len(train) * (1 - share))), len(train) - 1)
    logger.info("no validation data: held out the last %d of %d blocks (train_val_split)", len(train) - cut, len(train))
    return {**splits, "train": train.select(range(cut)), "validation": train.select(range(cut, len(train)))}


def _mask(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: LanguageModelingArguments) -> Dataset:
    """Mask evaluation data once and always alike, so that evaluations can be compared."""
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=args.mlm_probability, seed=SPLIT_SEED)

    def mask(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        masked = collate([{"input_ids": ids} for ids in batch["input_ids"]])
        return {name: masked[name].numpy() for name in ("input_ids", "labels")}

    return dataset.map(mask, batched=True, desc="masking")


def _masking_collator(tokenizer: PreTrainedTokenizerBase, args: LanguageModelingArguments) -> Callable[[list[Any]], Any]:
    """Mask training data when a batch is made; evaluation data are masked already."""
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=args.mlm_probability)
    return lambda rows: default_data_collator(rows) if "labels" in rows[0] else mask(rows)


def causal_collator(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Use every token as a label. The usual collator would ignore end tokens that are also used for padding."""
    batch = default_data_collator(rows)
    return {**batch, "labels": batch["input_ids"].clone()}


# ---- model ----


def _check_causal(config: PretrainedConfig, args: LanguageModelingArguments) -> None:
    """Raise ValueError for a model that sees the token it is to predict, because it would learn to copy it."""
    reads_both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if reads_both_ways and not getattr(config, "is_decoder", False):
        argument = "model_name_or_path" if args.model_name_or_path else "config_name"
        source = getattr(args, argument)
        raise ValueError(
            f"{argument}: {source!r} ({config.model_type}) is a masked language model; add --mlm, or set is_decoder to true "
            "in its config to train it as a causal one"
        )


def _block_size(args: LanguageModelingArguments, config: PretrainedConfig | None, tokenizer: PreTrainedTokenizerBase) -> int:
    stated: list[int | None] = []
    default = DEFAULT_BLOCK
    if config is not None:
        stated = [getattr(config, "max_position_embeddings", None)]
        default = LONGEST_BLOCK
        if tokenizer.name_or_path:  # a loaded one: one that was trained here has no limit of its own
            stated.append(tokenizer.model_max_length)
    elif args.mlm:
        stated = [default_config(tokenizer).max_position_embeddings]
    limit = length_limit("block_size", args.block_size, stated)
    return args.block_size or min(limit or default, default)


def default_llama(tokenizer: PreTrainedTokenizerBase, block: int) -> PretrainedConfig:
    """The tiny Llama that is trained without a model of one's own, for `block` tokens."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=block,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train language-modeling`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
