"""Rows for supervised fine-tuning: chats, prompts with completions, or plain texts, from the usual layouts of columns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from datasets import Dataset

from maxsup_hf.data.columns import check_not_missing, check_strings, is_list, is_string, report_columns, type_name

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system", "tool": "tool"}
# Columns of instructions with their answers: instruction, further input (may be absent), answer.
INSTRUCTIONS = (("instruction", "input", "output"), ("instruction", "context", "response"), ("question", None, "answer"))


def as_conversations(dataset: Dataset, split: str) -> Dataset:
    """Bring rows into a form that TRL trains on.

    Known are `messages` (a list of `role` and `content`), `conversations` (ShareGPT: a list of `from` and `value`), `prompt`
    with `completion`, the columns of `INSTRUCTIONS` (Alpaca, Dolly), and `text`.

    Returns:
        One column `messages`, or `prompt` and `completion`, or `text`.

    Raises:
        ValueError, TypeError: no known columns, an unknown role, or missing or other values.
    """
    names = dataset.column_names
    if "messages" in names:
        for row, turns in enumerate(dataset["messages"]):
            check_messages(turns, row, split)
        return _kept(dataset, ["messages"])
    if {"prompt", "completion"} <= set(names):
        for name in ("prompt", "completion"):
            check_not_missing(dataset, name, split)
        texts = [is_string(dataset.features[name]) for name in ("prompt", "completion")]
        if not all(texts) and (any(texts) or not all(is_list(dataset.features[name]) for name in ("prompt", "completion"))):
            raise TypeError(
                f"prompt and completion of the {split} data must both be texts, or both lists of turns, not "
                f"{type_name(dataset.features['prompt'])} and {type_name(dataset.features['completion'])}"
            )
        if all(texts):
            check_strings(dataset, "completion", "completion", split)
        return _kept(dataset, ["prompt", "completion"])
    if "conversations" in names:
        report_columns(dataset, ["conversations"])
        check_not_missing(dataset, "conversations", split)
        columns = {"messages": [_messages(row, i, split) for i, row in enumerate(dataset["conversations"])]}
        for row, turns in enumerate(columns["messages"]):
            check_messages(turns, row, split)
        return Dataset.from_dict(columns)
    for instruction, extra, answer in INSTRUCTIONS:
        if {instruction, answer} <= set(names):
            return _instructions(dataset, instruction, extra if extra in names else None, answer, split)
    if "text" in names:
        check_strings(dataset, "text", "text", split)
        return _kept(dataset, ["text"])
    raise ValueError(
        f"the {split} data has the columns {', '.join(names)}; expected messages, conversations, prompt and completion, "
        "instruction and output, or text: rename them"
    )


def conversation_columns(names: Collection[str]) -> list[str]:
    """Those of some columns that hold chats, or prompts or instructions with their answers; empty if none do."""
    layouts = (("messages",), ("conversations",), ("prompt", "completion"), *((a, b) for a, _, b in INSTRUCTIONS))
    return next((list(layout) for layout in layouts if set(layout) <= set(names)), [])


def _kept(dataset: Dataset, columns: list[str]) -> Dataset:
    report_columns(dataset, columns)
    return dataset.select_columns(columns)


def check_messages(turns: Any, row: int, split: str) -> None:
    """Raise ValueError unless a row is a list of turns with a role and a text (or the calls of tools)."""
    where = f"messages: row {row} of the {split} data"
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where} must be a list of turns, got {turns!r:.60}")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise ValueError(f"{where} has a turn without a role: {turn!r:.60}")
        if not isinstance(turn.get("content"), str) and not turn.get("tool_calls"):
            raise ValueError(f"{where} has a turn whose content is not a text: {turn!r:.60}")


def _messages(turns: list[dict[str, Any]], row: int, split: str) -> list[dict[str, Any]]:
    found = []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"conversations: row {row} of the {split} data must be a list of turns, got {turns!r:.60}")
    for turn in turns:
        role = turn.get("from", turn.get("role"))
        if role not in ROLES:
            raise ValueError(
                f"conversations: row {row} of the {split} data has a turn from {role!r}; it must come from one of "
                f"{', '.join(ROLES)}"
            )
        found.append({"role": ROLES[role], "content": turn.get("value", turn.get("content"))})
    return found


def _instructions(dataset: Dataset, instruction: str, extra: str | None, answer: str, split: str) -> Dataset:
    columns = [name for name in (instruction, extra, answer) if name is not None]
    report_columns(dataset, columns)
    for name in (instruction, answer):
        check_strings(dataset, name, name, split)
    extras = dataset[extra] if extra is not None and is_string(dataset.features[extra]) else [""] * len(dataset)
    pairs = zip(dataset[instruction], extras, strict=True)
    prompts = [f"{text}\n\n{more}\n\n" if more else f"{text}\n\n" for text, more in pairs]
    return Dataset.from_dict({"prompt": prompts, "completion": list(dataset[answer])})
