"""Inputs of families of models of sound and time series.

Each function takes the model and the general batch, and returns the inputs to replace or add; `None` removes one.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.sizes import B, S


def frames(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """One-hot classes for every frame."""
    with torch.no_grad():
        sound = {key: value for key, value in inputs.items() if key != "labels"}
        number = model(**sound).logits.shape[1]
    classes = model.config.num_labels
    return {"labels": torch.nn.functional.one_hot(torch.randint(classes, (B, number)), classes)}


def codebooks(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    number = getattr(model.config, "num_codebooks", None) or model.config.decoder.num_codebooks
    return {"input_ids": torch.randint(3, 50, (B * number, S)), "labels": torch.randint(3, 50, (B, S, number))}


def transducer(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = torch.randint(3, 50, (B, 4))
    blank = torch.full((B, 1), model.config.blank_token_id)
    sound = torch.ones(inputs["input_features"].shape[:2], dtype=torch.long)
    return {"labels": words, "decoder_input_ids": torch.cat([blank, words], 1), "attention_mask": sound}


def moshi(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    codes = {key: torch.randint(3, 50, (B, 4, S)) for key in ("user_audio_codes", "moshi_audio_codes", "audio_labels")}
    return codes | {"text_labels": inputs["input_ids"], "labels": None}


def latent_frames(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = inputs["input_ids"].clone()
    words[:, 4], words[:, 5:] = 50, 51
    return {"input_ids": words, "labels": torch.randn(B, S - 5, model.config.latent_dim)}


def higgs(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = inputs["input_ids"].clone()
    words[:, 8:] = 50
    codes = torch.randint(3, 50, (B, S - 8, 4))
    mask = torch.ones(B, S - 8, dtype=torch.bool)
    sound = {"audio_input_ids": codes, "audio_input_ids_mask": mask, "audio_labels": codes}
    return {"input_ids": words, "labels": None} | sound


def dia(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    channels = model.config.decoder_config.num_channels
    codes = torch.randint(3, 50, (B, S, channels))
    return {"decoder_input_ids": codes, "labels": torch.randint(3, 50, (B * channels, S))}


def spectrogram(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"labels": torch.randn(B, S, model.config.num_mel_bins)}
    found["speaker_embeddings"] = torch.randn(B, model.config.speaker_embedding_dim)
    if "TextTo" in type(model).__name__:
        return found | {"attention_mask": torch.ones(B, S, dtype=torch.long)}
    return found | {"input_ids": None, "input_values": torch.randn(B, 8000)}


def negatives(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        frames = model(**inputs).projected_states.shape[1]
    return {
        "mask_time_indices": torch.rand(B, frames) < 0.5,
        "sampled_negative_indices": torch.randint(B * frames, (B, frames, model.config.num_negatives)),
    }


def series(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    past, features = config.context_length + max(config.lags_sequence), config.num_time_features
    return {
        "input_ids": None,
        "past_values": torch.randn(B, past),
        "past_time_features": torch.randn(B, past, features),
        "past_observed_mask": torch.ones(B, past),
        "future_values": torch.randn(B, config.prediction_length),
        "future_time_features": torch.randn(B, config.prediction_length, features),
    }


def past(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """A series for each channel, and the target of the head."""
    config, name = model.config, type(model).__name__
    channels = getattr(config, "num_input_channels", 1)
    found: dict[str, Any] = {"input_ids": None, "past_values": torch.randn(B, config.context_length, channels)}
    if "Classification" in name:
        found["target_values"] = torch.randint(2, (B,))
    elif "Regression" in name:
        found["target_values"] = torch.randn(B, config.num_targets)
    elif "Prediction" in name:
        found["future_values"] = torch.randn(B, config.prediction_length, channels)
    return found
