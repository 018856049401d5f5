"""Texts that models write: encoder-decoders, causal and masked language models."""

from __future__ import annotations

import logging

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from maxsup_hf.data.columns import check_strings, find_column, is_string, read_column
from maxsup_hf.data.conversations import check_messages
from maxsup_hf.output.messages import shortened
from maxsup_hf.prediction.model import Model, Row, logits_of
from maxsup_hf.scripts import language_modeling, sequence_to_sequence

logger = logging.getLogger(__name__)


def rewrite(model: Model, rows: Dataset) -> list[Row]:
    """Generated texts of an encoder-decoder."""
    args = model.args
    source = find_column(
        rows, "source_column_name", args.source_column_name, fits=is_string, names=sequence_to_sequence.SOURCE_NAMES,
        taken=[args.label_column_name or ""], split="test",
    )  # fmt: skip
    check_strings(rows, source, "source_column_name", "test")
    sources = read_column(rows, source).to_pylist()
    texts = [args.source_prefix + text for text in sources]
    inputs = Dataset.from_dict(dict(model.processor(texts, truncation=True, max_length=model.length)))
    found = _generated(model, inputs, args.max_new_tokens)
    return [{source: text, "prediction": written} for text, written in zip(sources, found, strict=True)]


def go_on(model: Model, rows: Dataset) -> list[Row]:
    """How a causal language model continues each text."""
    texts = _texts(model, rows)
    model.processor.padding_side = model.processor.truncation_side = "left"
    length, new = _room(model)
    encoded = model.processor(texts, verbose=False)
    blank = next((row for row, ids in enumerate(encoded["input_ids"]) if not ids), None)
    if blank is not None:
        raise ValueError(f"text_column_name: row {blank} of the test data is empty: there is nothing to continue")
    cut = sum(len(ids) > length for ids in encoded["input_ids"])
    if cut:
        logger.warning("%d of the %d texts are cut to their last %d tokens", cut, len(texts), length)
        encoded = model.processor(texts, truncation=True, max_length=length)
    found = _generated(model, Dataset.from_dict(dict(encoded)), new, prompt=True)
    return [{"text": text, "prediction": continuation} for text, continuation in zip(texts, found, strict=True)]


def _room(model: Model) -> tuple[int, int]:
    """The most tokens of a text, and of its continuation, so that the model has positions for both."""
    new, limit = model.args.max_new_tokens, getattr(model.model.config, "max_position_embeddings", None)
    if limit is None:
        return model.length, new
    if new > limit // 2:
        logger.warning("max_new_tokens is lowered to %d, half of the %d tokens that the model takes", limit // 2, limit)
        new = limit // 2
    return min(model.length, limit - new), new


def _texts(model: Model, rows: Dataset) -> list[str]:
    given, names = model.args.text_column_name, (*language_modeling.TEXT_NAMES, "prompt")
    if given is None and "messages" in rows.column_names and model.processor.chat_template is not None:
        for row, turns in enumerate(rows["messages"]):
            check_messages(turns, row, "test")
        chats = [turns[:-1] if turns[-1]["role"] == "assistant" else turns for turns in rows["messages"]]
        return [model.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in chats]
    column = "prompt" if given is None and "prompt" in rows.column_names else None
    column = column or find_column(rows, "text_column_name", given, fits=is_string, names=names, split="test")
    check_strings(rows, column, "text_column_name", "test")
    return read_column(rows, column).to_pylist()


def _generated(model: Model, inputs: Dataset, new: int, prompt: bool = False) -> list[str]:
    """What the model generates, at most `new` tokens for each row; without the input if it is a prompt."""
    found: list[str] = []
    for batch in model.batches(inputs, DataCollatorWithPadding(model.processor)):
        batch.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = model.model.generate(**batch, max_new_tokens=new, do_sample=False)
        ids = ids[:, batch["input_ids"].shape[1] :] if prompt else ids
        found += [text.strip() for text in model.processor.batch_decode(ids, skip_special_tokens=True)]
    return found


def fill(model: Model, rows: Dataset) -> list[Row]:
    """The most probable token for each mask token of a text."""
    tokenizer, texts = model.processor, _texts(model, rows)
    without = next((i for i, text in enumerate(texts) if tokenizer.mask_token not in text), None)
    if without is not None:
        raise ValueError(
            f"text_column_name: row {without} has no {tokenizer.mask_token} to fill in: {shortened(texts[without])}"
        )
    inputs = Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=model.length)))
    best: list[list[int]] = []
    for output in model.outputs(inputs, DataCollatorWithPadding(tokenizer)):
        best += logits_of(output).argmax(-1).tolist()
    found = []
    for text, ids, predicted in zip(texts, inputs["input_ids"], best, strict=True):
        places = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
        found.append({"text": text, "prediction": [tokenizer.decode([predicted[i]]).strip() for i in places]})
    return found
