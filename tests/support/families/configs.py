"""What single families set in their configs, beyond the general rules of `build`: mostly sizes that have to match."""

import re
from typing import Any

from transformers import PretrainedConfig

from tests.support.sizes import S

FOUR_STAGES = {
    "num_hidden_layers": 4,
    "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "out_indices": [1, 2, 3, 4],
}
MIMI = {"upsample_groups": 32, "codebook_size": 64, "num_filters": 8, "num_quantizers": 4}


def at(path: str, values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a part of the config, with paths from the top."""
    return {f"{path}.{name}": value for name, value in values.items()}


# Regular expression for class names -> settings by dotted path. Every matching entry applies, in order. A part that a config
# does not have is skipped.
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    # Rotary positions in three sections (time, height, width), which must add up to half the head size of 16, or half of its
    # rotated part
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
    # State spaces: heads times head size must be `expand` times the hidden size
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


# Applied to the larger models as well (`sizes=False`).
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
    """Change the config in place as the class needs."""
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
