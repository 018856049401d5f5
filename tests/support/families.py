"""What single families need beyond the general rules of `build` and `inputs`: sizes that go together, inputs of their own.

Every entry whose pattern is found in the class name applies, in order.
"""

import re
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

B, S = 3, 16  # as in `inputs`
FOUR_STAGES = {
    "num_hidden_layers": 4,
    "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "out_indices": [1, 2, 3, 4],
}
MIMI = {"upsample_groups": 32, "codebook_size": 64, "num_filters": 8, "num_quantizers": 4}


def at(path: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same settings of a part of the config."""
    return {f"{path}.{name}": value for name, value in values.items()}


# Class name -> settings by dotted path; an integer in a path is an index. Paths that a config lacks are passed over.
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    # Rotary positions in three sections (time, height, width), which add up to half of a head's 16 (or of its rotated part)
    (
        r"^(ColQwen2|Glm46V|GlmImage|Glm4vFor|HunYuanVL|Qwen2VL|Qwen2_5)",
        {
            "text_config.rope_parameters.mrope_section": [2, 3, 3],
            "vlm_config.text_config.rope_parameters.mrope_section": [2, 3, 3],
            "thinker_config.text_config.rope_parameters.mrope_section": [2, 3, 3],
        },
    ),
    (r"^Glm4vMoe", {"text_config.rope_parameters.mrope_section": [1, 1, 2]}),
    (
        r"^Ernie4_5_VL",
        {"text_config.rope_parameters.mrope_section": [2, 2, 4], "text_config.moe_intermediate_size": [64, 32]},
    ),
    # Mixtures of experts
    (r"^BailingHybrid", {"num_expert_group": 1, "num_group": 1, "n_group": 1}),
    (r"^(DeepseekV2|Dots1)", {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}),
    (
        r"^DeepseekOcr2",
        at("text_config", {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]})
        | at("vision_config.sam_config", {"image_size": 64, "global_attn_indexes": (1,), "output_channels": 32}),
    ),
    (r"^DiffusionGemma", at("text_config", {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64})),
    (r"^Ernie4_5_", {"moe_k": 2, "text_config.moe_k": 2}),
    (r"^Lfm2Moe", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    (r"^LongcatFlash", {"qk_head_dim": 32, "zero_expert_num": 2}),
    (
        r"^Dots3Note",
        {
            f"{part}rope_parameters.{kind}_attention.partial_rotary_factor": 1.0
            for part in ("", "text_config.")
            for kind in ("sliding", "indexed")
        },
    ),
    (r"^Mistral4", {"qk_head_dim": 32, "rope_parameters.partial_rotary_factor": 1.0}),
    (r"^MiMoV2Flash", {"num_key_value_heads": 1}),
    (r"^Qwen3OmniMoe", at("talker_config.text_config", {"shared_expert_intermediate_size": 32})),
    (r"^Qwen3OmniMoe", {"talker_config.spatial_merge_size": 2}),
    (r"^Qwen3OmniMoeTalkerFor", {"text_config.shared_expert_intermediate_size": 32, "spatial_merge_size": 2}),
    (
        r"^Qwen4Exp",
        {
            f"{part}{name}": value
            for part in ("", "text_config.")
            for name, value in {
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": 8,
                "indexer_compress_ratio": 2,
                "ngram_vocab_size_base": 64,
                "hc_lowrank": 8,
            }.items()
        },
    ),
    # State spaces: heads times their size is what `expand` makes of the hidden size
    (r"^(Bamba|GraniteMoeHybrid)", {"mamba_d_head": 32, "mamba_n_groups": 1}),
    (r"^FalconH1", {"mamba_d_ssm": 64, "mamba_d_head": 32}),
    (r"^Mamba2", {"head_dim": 32, "n_groups": 1}),
    (r"^Nemotron(H|3_5Transcribe)", {"n_groups": 1, "text_config.n_groups": 1}),
    # Text
    (r"^Albert.*PreTraining", {"num_labels": 2}),
    (
        r"^Blt",
        {
            "encoder_hash_byte_group_vocab": 64,
            "encoder_config.hidden_size_global": 32,
            "decoder_config.hidden_size_global": 32,
            "global_config.encoder_cross_output_size": 64,
        },
    ),
    (r"^Bros", {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 16, "n_relations": 1}),
    (r"^CodeGen", {"n_head": 4, "n_embd": 64, "rotary_dim": 8}),
    (
        r"^CohereCompass",
        {
            f"{part}rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
            for part in ("", "text_config.")
        },
    ),
    (r"^Dbrx", {"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0}),
    (r"^Gemma3n", {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "text_config.num_kv_shared_layers": 0}),
    (r"^Gemma4For", {"vocab_size_per_layer_input": 64, "text_config.vocab_size_per_layer_input": 64}),
    (r"^Gemma4UnifiedAssistant", at("text_config", {"num_kv_shared_layers": 0})),
    (r"^NemotronFor", {"num_key_value_heads": 2}),
    (r"^Rag", {"reduce_loss": True}),
    (r"^ShieldGemma2", {"yes_token_index": 5, "no_token_index": 6}),
    (r"^Reformer", {"axial_pos_shape": (4, 4), "axial_pos_embds_dim": (16, 16), "num_buckets": 4}),
    (r"^ReformerModelWithLMHead", {"is_decoder": True}),
    (r"^Step3p7", at("text_config", {"sliding_window": 8})),
    # Images and video
    (r"^BeitForMasked", {"use_mask_token": True}),
    (r"^BeitForSem", FOUR_STAGES),
    (r"^Blip2|^InstructBlip", {"image_token_index": 60, "video_token_index": 61, "num_query_tokens": 4}),
    (r"^BridgeTower", {"hidden_size": 64, "text_config.hidden_size": 64, "vision_config.hidden_size": 64}),
    (r"^BridgeTower", {"contrastive_hidden_size": 32, "logit_scale_init_value": 2.6592}),
    (r"^Chameleon", {"vocabulary_map": {"<image>": 60}, "vq_config.base_channels": 32, "vq_config.latent_channels": 32}),
    (r"^CLIPSeg", {"extract_layers": (0, 1)}),
    (r"^DPTForSem", FOUR_STAGES | {"backbone_out_indices": (0, 1, 2, 3), "image_size": 64}),
    (r"^Data2VecVisionForSem", {"num_hidden_layers": 4, "out_indices": (0, 1, 2, 3)}),
    (r"^Emu3", {"vocabulary_map": {"<image>": 60, "<|extra_200|>": 61}, "vq_config.base_channels": 32}),
    (r"^Kosmos2For", {"latent_query_num": 4}),
    (r"^Granite4Vision", {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2"}),
    (r"^Hiera.*PreTraining", {"decoder_hidden_size": 32, "decoder_depth": 1, "decoder_num_heads": 2}),
    (r"^Sapiens2", {"num_key_value_heads_per_layer": [2, 2]}),
    (
        r"^Sapiens2",
        at(
            "head_config",
            {
                "upsample_out_channels": [8, 8],
                "upsample_kernel_sizes": [4, 4],
                "conv_out_channels": [8],
                "conv_kernel_sizes": [1],
            },
        ),
    ),
    (r"^Swin2SR", {"embed_dim": 24, "hidden_size": 24}),
    (r"^Tipsv2Dpt", at("backbone_config", FOUR_STAGES) | {"neck_hidden_sizes": [8, 8, 8, 8]}),
    (r"^Pvt", {"image_size": 96}),
    (r"^Vilt", {"num_images": 2, "modality_type_vocab_size": 3, "image_size": 64}),
    (r"^Vivit", {"num_frames": 4, "image_size": 64}),
    (r"^VideoPrism", {"image_size": 72, "num_frames": 4}),
    (r"^VitMatte", {"convstream_hidden_sizes": [48, 96, 192], "fusion_hidden_sizes": [256, 128, 64, 32]}),
    (r"^Tvp", {"max_img_size": 64, "visual_prompt_size": 8, "num_frames": 2}),
    # Latents
    (
        r"^Perceiver",
        {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 1, "train_size": (16, 16), "image_size": 56},
    ),
    (r"^PerceiverForMasked", {"max_position_embeddings": S}),
    (r"^Perceiver.*(Image|Optical|Multimodal)", {"num_self_attention_heads": 1, "num_cross_attention_heads": 1}),
    # Sound
    (r"^(Csm|Kyutai)", at("codec_config", MIMI)),
    (r"^(Csm|Kyutai)", {"num_codebooks": 4, "depth_decoder_config.num_codebooks": 4}),
    (r"^MoonshineStreaming", {"num_key_value_heads": 2}),
    (r"^Moshi", {"num_codebooks": 4, "depth_decoder_config.num_codebooks": 4}),
    (r"^(PocketTTS|GradiumPhonon)", {"audio_bos_token_id": 50, "audio_latent_token_id": 51}),
    (r"^HiggsAudio", {"audio_token_id": 50, "audio_delay_token_id": 51, "num_codebooks": 4, "codebook_size": 64}),
    (r"^Moshi", at("audio_encoder_config", MIMI) | {"audio_vocab_size": 64, "depth_decoder_config.input_size": 32}),
    (r"^SEW", {"conv_dim": (32, 32, 32), "conv_stride": (5, 4, 4), "conv_kernel": (10, 4, 4), "num_feat_extract_layers": 3}),
    (
        r"^VibeVoice",
        {
            f"{part}.{name}": value
            for part in (
                "acoustic_tokenizer_encoder_config",
                "semantic_tokenizer_encoder_config",
                "audio_config",
                "semantic_model_config",
            )
            for name, value in {"depths": (1, 1, 1), "downsampling_ratios": (2, 2), "num_filters": 8}.items()
        },
    ),
    # Time series
    (r"^PatchTSTForClass", {"num_targets": 2}),
    (r"^(Informer|TimeSeriesTransformer)", {"prediction_length": 4, "context_length": 8}),
]


# The same for models of either size, the larger ones too.
EITHER: list[tuple[str, dict[str, Any]]] = [
    (r"^(LwDetr|RfDetr)", at("backbone_config", FOUR_STAGES) | {"num_queries": 10}),
    (r"^LwDetr", {"projector_scale_factors": [1.0], "num_feature_levels": 1, "backbone_config.image_size": 256}),
    (r"^PPDocLayoutV2", {"class_thresholds": [0.5] * 5, "class_order": [0, 1, 2, 3, 4]}),
    (r"^RfDetr", {"backbone_config.image_size": 112}),
    (r"^SegGpt", {"intermediate_hidden_state_indices": [0, 1], "merge_index": 0}),
    (r"^(DFine|Deimv2|PPDocLayoutV[23]|RTDetr|GroundingDino|MMGroundingDino)", {"num_queries": 10}),
    (r"^Swin.*Masked", {"num_layers": 4}),
]


def fix_config(name: str, config: PretrainedConfig, sizes: bool) -> None:
    """Apply in place what the class needs."""
    for pattern, settings in EITHER + (CONFIGS if sizes else []):
        if re.search(pattern, name):
            for path, value in settings.items():
                _put(config, path, value)


def _put(config: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        config = config.get(parent) if isinstance(config, dict) else getattr(config, parent, None)
    if isinstance(config, dict):
        config[name] = value
    elif config is not None:
        setattr(config, name, value)


def pixels(model: PreTrainedModel, *shape: int) -> torch.Tensor:
    """One picture for each example, or of the leading `shape`."""
    config = getattr(model.config, "vision_config", None) or model.config
    size = getattr(config, "image_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(*(shape or (B,)), 3, height, width)


def _image(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values": pixels(model)}


def _with_query_tokens(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """BLIP-2 and its kin: as many image tokens as the query transformer has queries."""
    number = model.config.num_query_tokens
    slots = torch.full((B, number), 60)
    found: dict[str, Any] = {"input_ids": torch.cat([slots, inputs["input_ids"]], 1), "pixel_values": pixels(model)}
    found["labels"] = torch.cat([torch.full((B, number), -100), inputs["labels"]], 1)
    if "Instruct" in type(model).__name__:
        found["qformer_input_ids"] = inputs["input_ids"]
    return found


def _instruct_video(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    number = model.config.num_query_tokens * 4
    video = torch.full((B, number), 61)
    found = _with_query_tokens(model, inputs)
    found["input_ids"] = torch.cat([video, inputs["input_ids"]], 1)
    found["labels"] = torch.cat([torch.full((B, number), -100), inputs["labels"]], 1)
    return found | {"pixel_values": pixels(model, B, 4)}


def _frames(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """One-hot classes of every frame, as the heads for audio frames take them."""
    with torch.no_grad():
        sound = {key: value for key, value in inputs.items() if key != "labels"}
        number = model(**sound).logits.shape[1]
    classes = model.config.num_labels
    return {"labels": torch.nn.functional.one_hot(torch.randint(classes, (B, number)), classes)}


def _separators(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = inputs["input_ids"].clone()
    words[..., [3, 4, -1]] = model.config.sep_token_id
    return {"input_ids": words}


def _entities(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
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


def _lxmert(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    found = {"visual_feats": torch.randn(B, 4, model.config.visual_feat_dim), "visual_pos": torch.rand(B, 4, 4)}
    if "QuestionAnswering" in type(model).__name__:
        found["labels"] = torch.randint(model.config.num_qa_labels, (B,))
    return found


def _visual_bert(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
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


def _codebooks(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    number = getattr(model.config, "num_codebooks", None) or model.config.decoder.num_codebooks
    return {"input_ids": torch.randint(3, 50, (B * number, S)), "labels": torch.randint(3, 50, (B, S, number))}


def _one_class(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"labels": torch.randint(2, (B,))}


def _vilt(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    name = type(model).__name__
    if "Question" in name:
        return {"pixel_values": pixels(model), "labels": torch.rand(B, model.config.num_labels)}
    if "ImagesAndText" in name:
        return {"pixel_values": pixels(model, B, 2)}
    return {"pixel_values": pixels(model)}


def _bros(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
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


def _transducer(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = torch.randint(3, 50, (B, 4))
    blank = torch.full((B, 1), model.config.blank_token_id)
    sound = torch.ones(inputs["input_features"].shape[:2], dtype=torch.long)
    return {"labels": words, "decoder_input_ids": torch.cat([blank, words], 1), "attention_mask": sound}


def _moshi(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    codes = {key: torch.randint(3, 50, (B, 4, S)) for key in ("user_audio_codes", "moshi_audio_codes", "audio_labels")}
    return codes | {"text_labels": inputs["input_ids"], "labels": None}


def _latent_frames(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = inputs["input_ids"].clone()
    words[:, 4], words[:, 5:] = 50, 51
    return {"input_ids": words, "labels": torch.randn(B, S - 5, model.config.latent_dim)}


def _higgs(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    words = inputs["input_ids"].clone()
    words[:, 8:] = 50
    codes = torch.randint(3, 50, (B, S - 8, 4))
    mask = torch.ones(B, S - 8, dtype=torch.bool)
    sound = {"audio_input_ids": codes, "audio_input_ids_mask": mask, "audio_labels": codes}
    return {"input_ids": words, "labels": None} | sound


def _rag(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    documents = model.config.n_docs
    found = {
        "context_input_ids": torch.randint(3, 50, (B * documents, S)),
        "context_attention_mask": torch.ones(B * documents, S, dtype=torch.long),
        "doc_scores": torch.randn(B, documents),
    }
    return found | {"labels": inputs["input_ids"]}


def _series(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
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


def _spectrogram(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"labels": torch.randn(B, S, model.config.num_mel_bins)}
    found["speaker_embeddings"] = torch.randn(B, model.config.speaker_embedding_dim)
    if "TextTo" in type(model).__name__:
        return found | {"attention_mask": torch.ones(B, S, dtype=torch.long)}
    return found | {"input_ids": None, "input_values": torch.randn(B, 8000)}


def _patches(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(B, 16, 3 * model.config.vision_config.patch_size**2),
        "pixel_attention_mask": torch.ones(B, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]).repeat(B, 1),
    }


def _dia(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    channels = model.config.decoder_config.num_channels
    codes = torch.randint(3, 50, (B, S, channels))
    return {"decoder_input_ids": codes, "labels": torch.randint(3, 50, (B * channels, S))}


def _grounding(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """One example: the model's own position embeddings do not broadcast over more."""
    return {
        "input_ids": inputs["input_ids"][:1],
        "pixel_values": torch.randn(1, 2, 3, 64, 64),
        "labels": torch.tensor([[10.0], [0.2], [0.7]]),
    }


def _kosmos(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    slots = torch.arange(S).expand(B, S) < 4
    return {"pixel_values": pixels(model), "image_embeds_position_mask": slots.long()}


def _masks(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Two masks for each picture, and a list for each picture of their classes."""
    size = next(value for value in inputs.values() if torch.is_tensor(value)).shape[-2:]
    return {"mask_labels": [(torch.rand(2, *size) < 0.5).float()] * B, "class_labels": [torch.tensor([0, 1])] * B}


def _past(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """A series for each channel, and what the head predicts of it."""
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


def _masked_video(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    patches = config.num_frames // config.tubelet_size * (config.image_size // config.patch_size) ** 2
    return {"bool_masked_pos": (torch.arange(patches) % 2 == 0).repeat(B, 1)}


def _negatives(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        frames = model(**inputs).projected_states.shape[1]
    return {
        "mask_time_indices": torch.rand(B, frames) < 0.5,
        "sampled_negative_indices": torch.randint(B * frames, (B, frames, model.config.num_negatives)),
    }


def _one_former(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    queries = config.num_queries - config.text_encoder_n_ctx
    texts = torch.randint(3, 50, (B, queries, config.text_encoder_context_length))
    tasks = torch.rand(B, config.task_seq_len)
    return {"input_ids": None, "pixel_values": torch.randn(B, 3, 64, 64), "task_inputs": tasks, "text_inputs": texts}


def _object_masks(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    size = inputs["pixel_values"].shape[-2:]
    return {"labels": [target | {"masks": torch.ones(1, *size)} for target in inputs["labels"]]}


def _robot(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
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


# Class name -> what is added to the general batch; None takes an input away.
BATCHES: list[tuple[str, Any]] = [
    (r"^Qwen3OmniMoeTalkerFor", lambda model, inputs: {"input_ids": None, "inputs_embeds": torch.randn(B, S, 32)}),
    (
        r"GroundingDino",
        lambda model, inputs: {"input_ids": inputs["input_ids"] * (torch.arange(S) % 4 > 0)},
    ),  # 0: next class
    (r"^OneFormer", _one_former),
    (r"^RfDetrForInst", _object_masks),
    (r"^PI0", _robot),
    (r"^Albert.*PreTraining", lambda model, inputs: {"sentence_order_label": torch.tensor([0, 1, 1])}),
    (r"AudioFrameClassification", _frames),
    (
        r"^BeitForMasked",
        lambda model, inputs: {"labels": torch.randint(model.config.vocab_size, (int(inputs["bool_masked_pos"].sum()),))},
    ),
    (r"^FlavaForPre", lambda model, inputs: {"input_ids_masked": inputs["input_ids"], "mlm_labels": inputs["input_ids"]}),
    (r"^(Mask2Former|MaskFormer|OneFormer|Eomt|Videomt)", _masks),
    (r"^PatchTS", _past),
    (
        r"^TimesFm",
        lambda model, inputs: {
            "input_ids": None,
            "past_values": torch.randn(B, 64),
            "future_values": torch.randn(B, model.config.horizon_length),
        },
    ),
    (r"^VideoMAEForPre", _masked_video),
    (r"^Wav2Vec2.*PreTraining", _negatives),
    (
        r"^SplinterForPre",
        lambda model, inputs: {
            "question_positions": torch.tensor([[1, 2]] * B),
            "start_positions": torch.tensor([[4, 5]] * B),
            "end_positions": torch.tensor([[6, 7]] * B),
        },
    ),
    (
        r"^RoCBertForPre",
        lambda model, inputs: {
            f"{part}{kind}_ids": inputs["input_ids"]
            for part in ("", "attack_", "labels_")
            for kind in ("input", "input_shape", "input_pronunciation")
        },
    ),
    (r"^Clvp", lambda model, inputs: {"input_features": torch.randn(B, 80, S), "return_loss": True}),
    (r"^Qwen3_5ForSequence", lambda model, inputs: {"labels": torch.randint(5, (B,))}),  # hidden in its forward's **kwargs
    (r"GroundingDino", _image),
    (r"^Sapiens2ForPose", lambda model, inputs: {"labels": torch.rand(B, 5, 56, 56)}),
    (r"^Bros", _bros),
    (r"^BlipForQuest", lambda model, inputs: {"labels": inputs["input_ids"]}),
    (r"^BridgeTower.*Contrastive", lambda model, inputs: {"return_loss": True, "labels": None}),
    (r"^BridgeTower.*Retrieval|^VisualBert.*Reasoning|^Vilt.*Retrieval", _one_class),
    (
        r"^CLIPSeg",
        lambda model, inputs: {"pixel_values": pixels(model), "labels": torch.randint(2, (B, 224, 224)).float()},
    ),
    (
        r"^CsmFor",
        lambda model, inputs: {"input_ids": torch.randint(3, 50, (B, S, 4)), "labels": torch.randint(3, 50, (B, S, 4))},
    ),
    (r"^Dia", _dia),
    (r"^(PocketTTS|GradiumPhonon)", _latent_frames),
    (r"^HiggsAudio", _higgs),
    (r"ForRNNT|ForTDT", _transducer),
    (r"^Kyutai", lambda model, inputs: {"input_ids": torch.randint(3, 50, (B, S, 5))}),
    (r"^Kosmos2For", _kosmos),
    (r"^MoshiForCond", _moshi),
    (r"^Rag(Seq|Tok)", _rag),
    (r"^(Informer|TimeSeriesTransformer)", _series),
    (r"^SpeechT5For(Speech|Text)ToSpeech", _spectrogram),
    (r"^Siglip2For", _patches),
    (r"^SeamlessM4TTextToUnit", lambda model, inputs: {"input_ids": None, "inputs_embeds": torch.randn(B, S, 32)}),
    (
        r"^SegGpt",
        lambda model, inputs: {
            key: torch.randn(B, 3, 448, 448) for key in ("pixel_values", "prompt_pixel_values", "prompt_masks", "labels")
        },
    ),
    (r"^ShieldGemma2", lambda model, inputs: {"labels": inputs["input_ids"]}),
    (r"^Tvp", _grounding),
    (r"^Udop", lambda model, inputs: {"bbox": torch.rand(B, S, 4)}),
    (r"^VoxtralRealtime", lambda model, inputs: {"input_features": torch.randn(B, 128, 8 * S)}),
    (r"^Qwen3OmniMoeTalkerCodePredictor", lambda model, inputs: {"generation_steps": 1}),
    (r"^PPFormulaNet", _image),
    (
        r"^Pix2Struct",
        lambda model, inputs: {"input_ids": None, "flattened_patches": torch.rand(B, 8, 2 + 32)},
    ),
    (
        r"^Musicgen.*Conditional",
        lambda model, inputs: {"labels": torch.randint(3, 50, (B, S, model.config.decoder.num_codebooks))},
    ),
    (r"^GraniteSpeech5", lambda model, inputs: {"input_features": torch.randn(B, 128, 320)}),
    (r"^Blip2ForCond|^InstructBlipForCond", _with_query_tokens),
    (r"^InstructBlipVideo", _instruct_video),
    (r"^BlipFor(Cond|Quest)", _image),
    (r"^BridgeTower", _image),
    (r"^Longformer(ForM|ForQ)", _separators),
    (r"^LukeForEntity", _entities),
    (r"^Lxmert", _lxmert),
    (r"^VisualBert", _visual_bert),
    (r"^Musicgen.*CausalLM", _codebooks),
    (r"^Vilt", _vilt),
    (r"^GitFor", _image),
    (
        r"^Idefics(For)",
        lambda model, inputs: {"pixel_values": pixels(model, B, 1), "image_attention_mask": torch.ones(B, S, 1)},
    ),
    (
        r"^(Lasr|Parakeet|GraniteSpeech5)ForCTC",
        lambda model, inputs: {"attention_mask": torch.ones(inputs["input_features"].shape[:2], dtype=torch.long)},
    ),
    (r"^GLPN", lambda model, inputs: {"labels": 1 + torch.rand(B, *inputs["pixel_values"].shape[-2:])}),
]


def fix_batch(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with what the class needs."""
    for pattern, change in BATCHES:
        if re.search(pattern, type(model).__name__):
            inputs = inputs | change(model, inputs)
    return {key: value for key, value in inputs.items() if value is not None}
