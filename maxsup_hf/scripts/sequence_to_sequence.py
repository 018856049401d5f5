"""Train or fine-tune an encoder-decoder that turns one text into another: translation, summarisation.

Without arguments: a tiny T5 that translates names, dates and amounts from English to German. Nothing is downloaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from datasets import Dataset, Translation
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    T5Config,
)

from maxsup_hf.data.arguments import flag, no_flag
from maxsup_hf.data.builtin_texts import translated_phrases
from maxsup_hf.data.columns import (
    check_column,
    check_strings,
    find_column,
    identifier_columns,
    is_string,
    read_texts,
    report_columns,
)
from maxsup_hf.data.labels import set_aside_unlabelled
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.splits import hold_out_and_limit
from maxsup_hf.losses import IGNORE_INDEX
from maxsup_hf.metrics import chrf
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.lm_tokenizers import build_generator_tokenizer
from maxsup_hf.scripts.common.models import build_model, load_config
from maxsup_hf.scripts.common.tokenizers import TextArguments, max_length, report_cut, with_cut
from maxsup_hf.trainer.trainer import MaxSupSeq2SeqTrainer
from maxsup_hf.trainer.training_args import MaxSupSeq2SeqTrainingArguments

logger = logging.getLogger(__name__)

TASK = "sequence-to-sequence"
SOURCE_NAMES = ("source", "src", "document", "article", "dialogue", "input", "text")
TARGET_NAMES = ("target", "tgt", "summary", "highlights", "abstract", "output")

CUT_TARGET = "target_is_cut"
VOCABULARY_SIZE = 1_000  # of the default model: rare names are spelled out

GENERATE = {"predict_with_generate": True}
FROM_SCRATCH = {**recipes.FROM_SCRATCH, **GENERATE, "learning_rate": 3e-3}
BUILTIN = {**FROM_SCRATCH, "num_train_epochs": 4, "max_target_length": 48}
FINE_TUNING = {**recipes.FINE_TUNING, **GENERATE, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 32}
RECIPES = recipes.Recipes(BUILTIN, FROM_SCRATCH, FINE_TUNING)


@dataclass
class SequenceToSequenceArguments(TextArguments):
    """Flags of sequence-to-sequence tasks."""

    source_column_name: str | None = flag("Column of the texts to read (default: --source_lang, or found by its name).")
    target_column_name: str | None = flag("Column of the texts to generate (default: --target_lang, or found by its name).")
    source_lang: str | None = flag("Language to translate from: a column, or a key of the Hub's `translation` columns.")
    target_lang: str | None = flag("Language to translate to, as --source_lang.")
    source_prefix: str = flag("Text to put before every source: T5 expects its task there, 'summarize: '.", "")
    max_seq_length: int | None = flag(
        "Maximum length of a source in tokens; the rest is cut off (default: what the model takes, else 512)."
    )
    max_target_length: int = flag("Maximum length of a target in tokens, also of generated ones; the rest is cut off.", 128)
    label_column_name: str | None = no_flag()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_target_length < 1:
            raise ValueError(f"max_target_length must be at least 1 token, got {self.max_target_length}")


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(SequenceToSequenceArguments, argv, TASK, RECIPES, MaxSupSeq2SeqTrainingArguments)
    config = load_config(args)
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        splits, columns = _load_pairs(args)
        texts = read_texts(first_split(splits)[1], columns)
        tokenizer = build_generator_tokenizer(args, config, texts, vocabulary_size=VOCABULARY_SIZE, ends=True)
        config = config or _default_config(tokenizer)
        length = max_length(args, config, tokenizer)
        rows = splits
        splits = {split: _tokenize(dataset, columns, tokenizer, args, length, split) for split, dataset in rows.items()}
    model = build_model(AutoModelForSeq2SeqLM, config, args, training_args.seed)
    if training_args.generation_max_length is None:
        training_args.generation_max_length = args.max_target_length + 1  # the decoder's start token counts
    trainer = MaxSupSeq2SeqTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),  # without model=: the model makes decoder inputs from the labels
        compute_metrics=_text_metrics(tokenizer) if training_args.predict_with_generate else None,
    )
    builtin = "names, dates and amounts of Unicode CLDR, en to de"
    source, target = columns
    return run.make_job(
        args, trainer, splits, "text2text-generation", builtin,
        rows=rows, source_column_name=source, label_column_name=target, source_prefix=args.source_prefix,
        max_seq_length=length, max_new_tokens=args.max_target_length,
    )  # fmt: skip


# ---- data ----


def _load_pairs(args: SequenceToSequenceArguments) -> tuple[Splits, tuple[str, str]]:
    splits = {split: _flatten(dataset) for split, dataset in load_splits(args, translated_phrases).items()}
    first, rows = first_split(splits)
    source = args.source_column_name or _column_of(rows, args.source_lang)
    target = args.target_column_name or _column_of(rows, args.target_lang)
    if source is not None and source == target:
        raise ValueError(f"source_column_name and target_column_name are both {source!r}; name two columns")
    if source is not None:
        check_column(rows, source, "source_column_name", first)
    other = [source] if source else [name for name in rows.column_names if name.lower() in SOURCE_NAMES]
    target = find_column(rows, "target_column_name", target, fits=is_string, names=TARGET_NAMES, taken=other, split=first)
    source = find_column(rows, "source_column_name", source, fits=is_string, names=SOURCE_NAMES, taken=[target], split=first)
    report_columns(rows, [source, target])
    splits = set_aside_unlabelled(splits, args, target, {source: source})
    for split, dataset in splits.items():
        check_strings(dataset, source, "source_column_name", split)
        check_strings(dataset, target, "target_column_name", split)
        ids = identifier_columns(dataset, [source, target]) if split == "test" else []
        splits[split] = dataset.select_columns([source, target, *ids])
    return hold_out_and_limit(splits, args), (source, target)


def _flatten(dataset: Dataset) -> Dataset:
    """Split the `translation` column of the Hub's data sets, a dict, into `translation.en`, `translation.de`, …"""
    nested = any(isinstance(feature, dict | Translation) for feature in dataset.features.values())
    return dataset.flatten() if nested else dataset


def _column_of(dataset: Dataset, language: str | None) -> str | None:
    """The column named after a language, also if it comes from a dict; else the language itself."""
    found = [name for name in dataset.column_names if language and name.rpartition(".")[2] == language]
    return found[0] if len(found) == 1 else language


def _tokenize(
    dataset: Dataset,
    columns: tuple[str, str],
    tokenizer: PreTrainedTokenizerBase,
    args: SequenceToSequenceArguments,
    length: int,
    split: str,
) -> Dataset:
    """Replace the sources by token ids, and the targets by labels. Padding is left to the collator."""
    source, target = columns

    def encode(batch: dict[str, list[str]]) -> Any:
        encoded = tokenizer([args.source_prefix + text for text in batch[source]], truncation=True, max_length=length)
        targets = tokenizer(text_target=batch[target], truncation=True, max_length=args.max_target_length)
        cut = with_cut(targets, args.max_target_length, CUT_TARGET)
        return {**with_cut(encoded, length), "labels": targets["input_ids"], CUT_TARGET: cut[CUT_TARGET]}

    tokenized = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="tokenizing")
    tokenized = report_cut(tokenized, args.max_target_length, split, "targets", "max_target_length", CUT_TARGET)
    return report_cut(tokenized, length, split, "sources")


# ---- model and metrics ----


def _default_config(tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    return config


def _text_metrics(tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` of generated texts: chrF and exact match, and BLEU (in percent) if sacrebleu is installed."""
    has_sacrebleu = find_spec("sacrebleu") is not None
    if not has_sacrebleu:
        logger.info("sacrebleu is not installed: generated texts are scored by chrF and exact match, without BLEU")

    def decode(ids: Any) -> list[str]:
        kept = np.where(ids == IGNORE_INDEX, tokenizer.pad_token_id, ids)
        return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        generated = prediction.predictions
        if isinstance(generated, tuple):
            generated = generated[0]
        found, wanted = decode(generated), decode(prediction.label_ids)
        scores = {"chrf": chrf(found, wanted), "exact_match": float(np.mean(np.array(found) == np.array(wanted)))}
        if has_sacrebleu:
            from sacrebleu import corpus_bleu

            scores["bleu"] = corpus_bleu(found, [wanted]).score
        return scores

    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train sequence-to-sequence`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
