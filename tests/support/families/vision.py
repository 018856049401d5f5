"""Inputs of families of models of images, videos and documents.

Each function takes the model and the general batch, and returns the inputs to replace or add; `None` removes one.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.sizes import B, S


def pixels(model: PreTrainedModel, *shape: int) -> torch.Tensor:
    """One image for each example, or images of the leading `shape`."""
    config = getattr(model.config, "vision_config", None) or model.config
    size = getattr(config, "image_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(*(shape or (B,)), 3, height, width)


def image(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values": pixels(model)}


def with_query_tokens(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """BLIP-2 and similar models: one image token for each query of the query transformer."""
    number = model.config.num_query_tokens
    slots = torch.full((B, number), 60)
    found: dict[str, Any] = {"input_ids": torch.cat([slots, inputs["input_ids"]], 1), "pixel_values": pixels(model)}
    found["labels"] = torch.cat([torch.full((B, number), -100), inputs["labels"]], 1)
    if "Instruct" in type(model).__name__:
        found["qformer_input_ids"] = inputs["input_ids"]
    return found


def instruct_video(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    number = model.config.num_query_tokens * 4
    video = torch.full((B, number), 61)
    found = with_query_tokens(model, inputs)
    found["input_ids"] = torch.cat([video, inputs["input_ids"]], 1)
    found["labels"] = torch.cat([torch.full((B, number), -100), inputs["labels"]], 1)
    return found | {"pixel_values": pixels(model, B, 4)}


def lxmert(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    found = {"visual_feats": torch.randn(B, 4, model.config.visual_feat_dim), "visual_pos": torch.rand(B, 4, 4)}
    if "QuestionAnswering" in type(model).__name__:
        found["labels"] = torch.randint(model.config.num_qa_labels, (B,))
    return found


def visual_bert(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    name = type(model).__name__
    lead = inputs["input_ids"].shape[:-1]
    found: dict[str, Any] = {
        "visual_embeds": torch.randn(*lead, 4, model.config.visual_embedding_dim),
        "visual_attention_mask": torch.ones(*lead, 4, dtype=torch.long),
        "attention_mask": torch.ones_like(inputs["input_ids"]),
    }
    if "PreTraining" in name:
        found["labels"] = torch.cat([inputs["labels"], torch.full((B, 4), -100)], 1)
        found["sentence_image_labels"] = torch.tensor([0, 1, 1])
    if "QuestionAnswering" in name:
        found["labels"] = torch.rand(B, model.config.num_labels).softmax(-1)
    if "Reasoning" in name:
        found["labels"] = torch.randint(model.config.num_labels, (B,))
    if "Phrase" in name:
        found["region_to_phrase_position"] = torch.randint(1, 8, (B, S + 4))
        found["labels"] = torch.rand(B, S + 4, 4)
    return found


def vilt(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    name = type(model).__name__
    if "Question" in name:
        return {"pixel_values": pixels(model), "labels": torch.rand(B, model.config.num_labels)}
    if "ImagesAndText" in name:
        return {"pixel_values": pixels(model, B, 2)}
    return {"pixel_values": pixels(model)}


def patches(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(B, 16, 3 * model.config.vision_config.patch_size**2),
        "pixel_attention_mask": torch.ones(B, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]).repeat(B, 1),
    }


def grounding(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """One example, because the model's position embeddings do not broadcast over several."""
    return {
        "input_ids": inputs["input_ids"][:1],
        "pixel_values": torch.randn(1, 2, 3, 64, 64),
        "labels": torch.tensor([[10.0], [0.2], [0.7]]),
    }


def kosmos(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    slots = torch.arange(S).expand(B, S) < 4
    return {"pixel_values": pixels(model), "image_embeds_position_mask": slots.long()}


def masks(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Two masks for each image, and their classes."""
    size = next(value for value in inputs.values() if torch.is_tensor(value)).shape[-2:]
    return {"mask_labels": [(torch.rand(2, *size) < 0.5).float()] * B, "class_labels": [torch.tensor([0, 1])] * B}


def masked_video(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    patches = config.num_frames // config.tubelet_size * (config.image_size // config.patch_size) ** 2
    return {"bool_masked_pos": (torch.arange(patches) % 2 == 0).repeat(B, 1)}


def one_former(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    queries = config.num_queries - config.text_encoder_n_ctx
    texts = torch.randint(3, 50, (B, queries, config.text_encoder_context_length))
    tasks = torch.rand(B, config.task_seq_len)
    return {"input_ids": None, "pixel_values": torch.randn(B, 3, 64, 64), "task_inputs": tasks, "text_inputs": texts}


def object_masks(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    size = inputs["pixel_values"].shape[-2:]
    return {"labels": [target | {"masks": torch.ones(1, *size)} for target in inputs["labels"]]}


def robot(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    image = config.vlm_config.vision_config.image_size
    words = torch.cat([torch.full((B, 256), config.vlm_config.image_token_id), inputs["input_ids"]], 1)
    return {
        "input_ids": words,
        "state": torch.randn(B, config.max_state_dim),
        "actions": torch.randn(B, config.chunk_size, config.max_action_dim),
        "pixel_values": torch.randn(B, 1, 3, image, image),
        "pixel_attention_mask": torch.ones(B, 1, dtype=torch.bool),
    }
