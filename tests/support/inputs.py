"""A training batch for any head, derived from its class name and the arguments of its forward."""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.build import text_config
from tests.support.families.batches import fix_batch
from tests.support.sizes import CHOICES, B, S


def batch(model: PreTrainedModel) -> dict[str, Any]:
    """Inputs and labels of three examples, the same at every call."""
    torch.manual_seed(1)
    name, arguments = type(model).__name__, inspect.signature(model.forward).parameters
    config = model.config
    inputs = _modality(model, name, arguments)
    labels = _labels(model, name, arguments, inputs)
    if getattr(config, "is_encoder_decoder", False) and "labels" not in labels and "decoder_input_ids" in arguments:
        inputs["decoder_input_ids"] = inputs.get("input_ids", torch.randint(3, 50, (B, S)))
    return fix_batch(model, inputs | labels)


def _modality(model: PreTrainedModel, name: str, arguments: Any) -> dict[str, Any]:
    config, main = model.config, model.main_input_name
    if main == "input_features" and getattr(config, "encoder_config", None) is not None:
        config = config.encoder_config
    vision = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    if "MultipleChoice" in name:
        return {"input_ids": torch.randint(3, 50, (B, CHOICES, S))}
    if "input_ids" not in arguments and (
        main in ("pixel_values", "pixel_values_videos") or "Image" in name or "Video" in name
    ):
        size = getattr(config, "image_size", None) or getattr(vision, "image_size", None) or 64
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        if not hasattr(vision, "patch_size") and not hasattr(vision, "tubelet_size"):  # convolutions take any size
            height, width = min(height, 96), min(width, 96)
        channels = getattr(vision, "num_channels", None) or getattr(config, "num_channels", 3) or 3
        shape: tuple[int, ...] = (B, channels, height, width)
        if "Video" in name or "videos" in main:
            frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", 2)
            shape = (B, frames, channels, height, width)
        key = "pixel_values_videos" if "pixel_values_videos" in arguments and "Video" in name else "pixel_values"
        if key in arguments:
            return {key: torch.randn(shape)}
    if "input_values" in arguments and main == "input_values":
        if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # a spectrogram
            return {"input_values": torch.randn(B, config.max_length, config.num_mel_bins)}
        return {"input_values": torch.randn(B, 8000)}
    if "input_features" in arguments and main == "input_features":
        names = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "num_mel_features")
        bins = next((getattr(config, name) for name in names if getattr(config, name, None)), 80)
        length = 2 * getattr(config, "max_source_positions", 64)
        whisper_like = "Whisper" in name or "Voxtral" in name or "Qwen2Audio" in name
        return {"input_features": torch.randn((B, bins, length) if whisper_like else (B, 128, bins))}
    inputs = {"input_ids": torch.randint(3, 50, (B, S))}
    end = getattr(text_config(config), "eos_token_id", None)
    inputs["input_ids"][:, -1] = end if isinstance(end, int) and end < 64 else 2  # some heads need it
    if "mm_token_type_ids" in arguments:
        inputs["mm_token_type_ids"] = torch.zeros(B, S, dtype=torch.long)
    if "bbox" in arguments:
        inputs["bbox"] = torch.tensor([10, 10, 20, 20]).expand(B, S, 4).clone()
    return inputs


def _labels(model: PreTrainedModel, name: str, arguments: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    classes = getattr(config, "num_labels", 2) or 2
    tail = torch.arange(S) >= torch.tensor([[6], [10], [16]])
    if "QuestionAnswering" in name and "start_positions" in arguments:
        beyond = 0 if "is_impossible" in arguments else S + 3  # heads with a beam search take positions within the text only
        return {"start_positions": torch.tensor([1, 5, beyond]), "end_positions": torch.tensor([2, 9, beyond])}
    if "MultipleChoice" in name:
        return {"labels": torch.tensor([0, 2, 1])}
    if "NextSentence" in name:
        return {"labels": torch.tensor([0, 1, 1])}
    if "SemanticSegmentation" in name:
        pixels = inputs["pixel_values"]
        labels = torch.randint(classes, (B, *pixels.shape[-2:]))
        return {"labels": labels.masked_fill(torch.rand(labels.shape) < 0.2, 255)}
    if any(word in name for word in ("ObjectDetection", "UniversalSegmentation", "InstanceSegmentation")):
        target = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
        return {"labels": [target] * B} if "labels" in arguments else {}
    if "TokenClassification" in name:
        return {"labels": torch.randint(classes, (B, S)).masked_fill(tail, -100)}
    if "Classification" in name and "Frame" not in name:
        return {"labels": torch.randint(classes, (B,))} if "labels" in arguments else {}
    if "XVector" in name:
        return {"labels": torch.randint(classes, (B,))}
    if "CTC" in name:
        return {"labels": torch.randint(1, 20, (B, 4))}
    if "MaskedImageModeling" in name:
        patches = (config.image_size // config.patch_size) ** 2
        return {"bool_masked_pos": torch.rand(B, patches) < 0.5}
    if "labels" not in arguments:
        return {}
    words = inputs["input_ids"] if "input_ids" in inputs else torch.randint(3, 50, (B, S))
    found: dict[str, Any] = {"labels": words.masked_fill(tail, -100)}
    for key in ("next_sentence_label", "sentence_order_label"):
        if key in arguments:
            found[key] = torch.tensor([0, 1, 1])
    return found
