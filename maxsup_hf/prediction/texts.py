"""Texts that models write: encoder-decoders, causal and masked language models."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from maxsup_hf.data.columns import check_strings, find_column, is_string, read_column
from maxsup_hf.data.messages import shortened
from maxsup_hf.prediction.model import Model, Row, logits_of
from maxsup_hf.scripts import language_modeling, sequence_to_sequence


def rewrite(model: Model, rows: Dataset) -> list[Row]:
    """Generated texts of an encoder-decoder."""
    args = model.args
    source = find_column(
        rows, "source_column_name", args.source_column_name, fits=is_string, names=sequence_to_sequence.SOURCE_NAMES,
        taken=[args.label_column_name or ""],
    )  # fmt: skip
    texts = [args.source_prefix + text for text in read_column(rows, source).to_pylist()]
    inputs = Dataset.from_dict(dict(model.processor(texts, truncation=True, max_length=model.length)))
    collate, length = DataCollatorWithPadding(model.processor), args.max_new_tokens
    return [{"prediction": text} for text in _generated(model, inputs, collate, length)]


def go_on(model: Model, rows: Dataset) -> list[Row]:
    """How a causal language model continues each text."""
    texts = _texts(model, rows)
    model.processor.padding_side = "left"
    prompt_length, new_tokens = _room(model)
    inputs = Dataset.from_dict(dict(model.processor(texts, truncation=True, max_length=prompt_length)))
    found = _generated(model, inputs, DataCollatorWithPadding(model.processor), new_tokens, prompt=True)
    return [{"text": text, "prediction": continuation} for text, continuation in zip(texts, found, strict=True)]


def _room(model: Model) -> tuple[int, int]:
    """Most tokens of a prompt and of what follows it, which takes at most half of the model's positions."""
    limit = getattr(model.model.config, "max_position_embeddings", None) or model.length + model.args.max_new_tokens
    new_tokens = min(model.args.max_new_tokens, max(1, limit // 2))
    return min(model.length, limit - new_tokens), new_tokens


def _texts(model: Model, rows: Dataset) -> list[str]:
    given, names = model.args.text_column_name, (*language_modeling.TEXT_NAMES, "prompt")
    if given is None and "messages" in rows.column_names and model.processor.chat_template is not None:
        chats = [turns[:-1] if turns[-1]["role"] == "assistant" else turns for turns in rows["messages"]]
        return [model.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in chats]
    column = "prompt" if given is None and "prompt" in rows.column_names else None
    column = column or find_column(rows, "text_column_name", given, fits=is_string, names=names)
    check_strings(rows, column, "text_column_name", "test")
    return read_column(rows, column).to_pylist()


def _generated(model: Model, inputs: Dataset, collate: Any, new_tokens: int, prompt: bool = False) -> list[str]:
    found: list[str] = []
    for batch in model.batches(inputs, collate):
        batch.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = model.model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
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
