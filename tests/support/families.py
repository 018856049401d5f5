"""What single families need beyond the general rules of `build` and `inputs`: sizes that go together, inputs of their own.

Every entry whose pattern is found in the class name applies, in order.
"""

import re
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

B, S = 3, 16  # as in `inputs`
SPAN = {"hidden_size": 32, "num_attention_heads": 2}
MIMI = {"upsample_groups": 32, "codebook_size": 64, "num_filters": 8, "num_quantizers": 4}


def at(path: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same settings of a part of the config."""
    return {f"{path}.{name}": value for name, value in values.items()}


# Class name -> settings by dotted path; an integer in a path is an index. Paths that a config lacks are passed over.
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    # Rotary positions in three sections (time, height, width), which add up to half of a head's 16 (or of its rotated part)
    (
        r"^(ColQwen2|Glm46V|Glm4vFor|HunYuanVL|Qwen2VL|Qwen2_5)",
        {
            "text_config.rope_parameters.mrope_section": [2, 3, 3],
            "vlm_config.text_config.rope_parameters.mrope_section": [2, 3, 3],
            "thinker_config.text_config.rope_parameters.mrope_section": [2, 3, 3],
        },
    ),
    (r"^Glm4vMoe", {"text_config.rope_parameters.mrope_section": [1, 1, 2]}),
    (r"^Ernie4_5_VL", {"text_config.rope_parameters.mrope_section": [2, 2, 4], "text_config.moe_intermediate_size": [64, 32]}),
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
    (r"^(Dots3Note|Mistral4)", {"qk_head_dim": 32}),
    (r"^MiMoV2Flash", {"num_key_value_heads": 1}),
    (r"^Qwen3OmniMoe", at("talker_config.text_config", {"shared_expert_intermediate_size": 32})),
    (r"^Qwen3OmniMoeTalker", at("text_config", {"shared_expert_intermediate_size": 32})),
    # State spaces: heads times their size is what `expand` makes of the hidden size
    (r"^(Bamba|GraniteMoeHybrid)", {"mamba_d_head": 32, "mamba_n_groups": 1}),
    (r"^FalconH1", {"mamba_d_ssm": 64, "mamba_d_head": 32}),
    (r"^Mamba2", {"head_dim": 32, "n_groups": 1}),
    (r"^Nemotron(H|3_5Transcribe)", {"n_groups": 1, "text_config.n_groups": 1}),
    # Text
    (
        r"^Blt",
        {
            "encoder_hash_byte_group_vocab": 64,
            "encoder_config.hidden_size_global": 32,
            "decoder_config.hidden_size_global": 32,
            "global_config.encoder_cross_output_size": 64,
        },
    ),
    (r"^Bros", {"dim_bbox_sinusoid_emb_2d": 8, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 16, "n_relations": 1}),
    (r"^CodeGen", {"n_head": 4, "n_embd": 64, "rotary_dim": 8}),
    (r"^CohereCompass", {}),
    (r"^Dbrx", {"attn_config.rope_theta": 1e4}),
    (r"^Gemma3n", {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "text_config.num_kv_shared_layers": 0}),
    (r"^Gemma4For", {"vocab_size_per_layer_input": 64, "text_config.vocab_size_per_layer_input": 64}),
    (r"^Gemma4UnifiedAssistant", at("text_config", {"num_kv_shared_layers": 0})),
    (r"^NemotronFor", {"num_key_value_heads": 2}),
    (r"^Reformer", {"axial_pos_shape": (4, 4), "axial_pos_embds_dim": (16, 16), "num_buckets": 4}),
    (r"^Step3p7", at("text_config", {"sliding_window": 8})),
    # Images and video
    (r"^BeitForSem", {"_out_indices": [1, 2, 1, 2], "out_indices": [1, 2, 1, 2]}),
    (r"^BridgeTower", {"hidden_size": 64, "text_config.hidden_size": 64, "vision_config.hidden_size": 64}),
    (r"^Chameleon", {"vocabulary_map": {"<image>": 60}, "vq_config.base_channels": 32, "vq_config.latent_channels": 32}),
    (r"^CLIPSeg", {"extract_layers": (0, 1)}),
    (r"^DPTForSem", {"backbone_out_indices": (0, 1, 0, 1), "neck_hidden_sizes": (8, 16, 32, 64), "image_size": 64}),
    (r"^Data2VecVisionForSem", {"out_indices": (0, 1, 0, 1)}),
    (r"^Emu3", {"vocabulary_map": {"<image>": 60, "<|extra_200|>": 61}, "vq_config.base_channels": 32}),
    (r"^GLPN", {}),
    (r"^Hiera.*PreTraining", {"decoder_hidden_size": 32, "decoder_depth": 1, "decoder_num_heads": 2}),
    (r"^Pvt", {"image_size": 96}),
    (r"^Vilt", {"num_images": 2, "image_size": 64}),
    (r"^Vivit", {"num_frames": 4, "image_size": 64}),
    (r"^VideoPrism", {"image_size": 72, "num_frames": 4}),
    (r"^VitMatte", {"convstream_hidden_sizes": [48, 96, 192], "fusion_hidden_sizes": [256, 128, 64, 32]}),
    (r"^Tvp", {"max_img_size": 64, "visual_prompt_size": 8, "num_frames": 2}),
    # Latents
    (
        r"^Perceiver",
        {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 1, "train_size": (16, 16), "image_size": 56},
    ),
    (r"^Perceiver.*(Image|Optical|Multimodal)", {"num_self_attention_heads": 1, "num_cross_attention_heads": 1}),
    # Sound
    (r"^(Csm|Kyutai)", at("codec_config", MIMI)),
    (r"^(Csm|Kyutai)", {"num_codebooks": 4, "depth_decoder_config.num_codebooks": 4}),
    (r"^GraniteSpeech5", {}),
    (r"^MoonshineStreaming", {"num_key_value_heads": 2}),
    (r"^Moshi", at("audio_encoder_config", MIMI) | {"audio_vocab_size": 64, "depth_decoder_config.input_size": 32}),
    (r"^SEW", {"conv_dim": (32, 32, 32), "conv_stride": (5, 4, 4), "conv_kernel": (10, 4, 4), "num_feat_extract_layers": 3}),
    # Time series
    (r"^(Informer|TimeSeriesTransformer)", {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2]}),
]


def fix_config(name: str, config: PretrainedConfig) -> None:
    """Apply in place what the class needs."""
    for pattern, settings in CONFIGS:
        if re.search(pattern, name):
            for path, value in settings.items():
                _put(config, path, value)


def _put(config: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        config = getattr(config, parent, None)
    if isinstance(config, dict):
        config[name] = value
    elif config is not None:
        setattr(config, name, value)


def pixels(model: PreTrainedModel, *shape: int) -> torch.Tensor:
    """One picture for each example, or of the leading `shape`."""
    config = getattr(model.config, "vision_config", None) or model.config
    size = getattr(config, "image_size", None) or 64
    return torch.randn(*(shape or (B,)), 3, size, size)


def _image(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values": pixels(model)}


def _words(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Without `labels`, where `inputs` made none from a picture."""
    words = torch.randint(3, 50, (B, S))
    return {"input_ids": words, "pixel_values": None}


def _image_slots(model: PreTrainedModel, inputs: dict[str, Any], number: int) -> torch.Tensor:
    words = torch.cat([torch.full((B, number), model.config.image_token_id), inputs["input_ids"]], 1)
    return words


def _with_query_tokens(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """BLIP-2 and its kin: as many image tokens as the query transformer has queries."""
    number = model.config.num_query_tokens
    found: dict[str, Any] = {"input_ids": _image_slots(model, inputs, number), "pixel_values": pixels(model)}
    found["labels"] = torch.cat([torch.full((B, number), -100), inputs["labels"]], 1)
    if "Instruct" in type(model).__name__:
        found["qformer_input_ids"] = inputs["input_ids"]
    return found


def _instruct_video(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    number = model.config.num_query_tokens * 4
    video = torch.full((B, number), model.config.video_token_id)
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


# Class name -> what is added to the general batch; None takes an input away.
BATCHES: list[tuple[str, Any]] = [
    (r"^Albert.*PreTraining", lambda model, inputs: {"sentence_order_label": torch.tensor([0, 1, 1])}),
    (r"AudioFrameClassification", _frames),
    (r"^Blip2ForCond|^InstructBlipForCond", _with_query_tokens),
    (r"^InstructBlipVideo", _instruct_video),
    (r"^BlipFor(Cond|Quest)", _image),
    (r"^BridgeTower", _image),
    (r"^Longformer(ForM|ForQ)", _separators),
    (r"^LukeForEntity", _entities),
    (r"^Lxmert", _lxmert),
    (r"^VisualBert", _visual_bert),
    (r"^Musicgen.*CausalLM", _codebooks),
    (r"^Vilt", _image),
    (r"^GitFor", _image),
    (r"^Idefics(For)", lambda model, inputs: {"pixel_values": pixels(model, B, 1)}),
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
