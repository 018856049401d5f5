"""Inputs of families of text models.

Each function takes the model and the general batch, and returns the inputs to replace or add; `None` removes one.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.sizes import B, S


def separators(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = inputs["input_ids"].clone()
    words[..., [3, 4, -1]] = model.config.sep_token_id
    return {"input_ids": words}


def entities(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    span = "Span" in type(model).__name__
    classes = model.config.num_labels
    found: dict[str, Any] = {
        "entity_ids": torch.tensor([[1, 2]]).repeat(B, 1),
        "entity_attention_mask": torch.ones(B, 2, dtype=torch.long),
        "entity_position_ids": torch.tensor([[[1, 2, -1], [4, 5, 6]]]).repeat(B, 1, 1),
    }
    if span:
        found["entity_start_positions"] = torch.tensor([[1, 4]]).repeat(B, 1)
        found["entity_end_positions"] = torch.tensor([[2, 6]]).repeat(B, 1)
    return found | {"labels": torch.randint(classes, (B, 2) if span else (B,))}


def one_class(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"labels": torch.randint(2, (B,))}


def bros(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    first = torch.ones(B, S, dtype=torch.bool)
    others = ((torch.arange(S) + 3) % S).repeat(B, 1)  # a token is never its own successor
    found: dict[str, Any] = {"bbox": torch.rand(B, S, 4), "bbox_first_token_mask": first}
    found["attention_mask"] = torch.ones(B, S, dtype=torch.long)
    if "SpadeEE" in type(model).__name__:
        classes = model.config.num_labels
        found["initial_token_labels"] = torch.randint(classes, (B, S))
        found["subsequent_token_labels"] = others
    elif "SpadeEL" in type(model).__name__:
        found["labels"] = others
    return found


def rag(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    documents = model.config.n_docs
    found = {
        "context_input_ids": torch.randint(3, 50, (B * documents, S)),
        "context_attention_mask": torch.ones(B * documents, S, dtype=torch.long),
        "doc_scores": torch.randn(B, documents),
    }
    return found | {"labels": inputs["input_ids"]}
