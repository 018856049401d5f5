"""Tiny models of any architecture: its default config, made small by rules on the names of its settings."""

import re
from contextlib import suppress
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from tests.support.families.configs import fix_config

CLASSES = 5
HEAD = re.compile(r"For[A-Z]|LMHead|Decoder$|DoubleHeads")  # names of classes with a head
LARGEST = 120_000_000  # parameters; a larger model would fill the memory without testing a loss any better

# The first match counts, `None` keeps the value. The sizes have to match: 2 heads of 16 make a hidden size of 32.
SIZES = [
    (
        r"(image_token|video_token|audio_token|image_start|image_end|vision_start|vision_end|boi|eoi|boa|eoa)\w*(_id|_index|_token)?$",
        None,
    ),
    (r"_token_id$|_token_index$|_id$", None),
    (r"vocab_size|vocabulary_size|n_vocab|n_words|num_tokens$", 64),
    (r"num_key_value_heads|num_kv_heads|multi_query_group_num", 2),
    (r"(num|n)_.*heads?$|.*attention_heads$|n_head$|num_heads$", 2),
    (r"rotary_dim", 8),
    (r"head_dim$|d_kv$|kv_channels|qk_nope_head_dim|v_head_dim|attention_head_size", 16),
    (r"(q|kv)_lora_rank|.*_rank$", 8),
    (r"num_experts_per_tok|moe_top_?k|num_experts_per_token|top_k_experts", 2),
    (r"num_(local_|routed_)?experts$|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts", 1),
    (r"(num|n)_.*layers?$|.*_layers$|n_layer$|num_layers$|depth$|num_blocks$|num_hidden_groups|num_stages_layers", 2),
    (
        r"intermediate_size|ffn_dim|d_ff$|d_inner$|n_inner|hidden_dim$|mlp_dim|feed_forward\w*|ffn_hidden_size|moe_intermediate_size|inner_dim",
        64,
    ),
    (
        r"hidden_size|d_model$|n_embd$|embed_dim$|embedding_size|dim$|width$|d_embed|projection_dim|hidden_dim|proj_size|model_dim",
        32,
    ),
    (r"max_position_embeddings|n_positions|max_source_positions|max_target_positions|n_ctx|max_seq_len\w*|seq_length$", 128),
]
# Set to 0: losses and gradients of two passes are compared, so nothing may be random.
RANDOM = re.compile(
    r"dropout|drop_path|dropout_rate|layerdrop|drop_rate|pdrop|apply_spec_augment|mask_time_prob|mask_feature_prob"
)
MODALITY_TOKENS = {"image": 60, "video": 61, "audio": 62}  # the last of 64 words


def shrink(config: PretrainedConfig, sizes: bool, seen: frozenset[int] = frozenset()) -> None:
    """Make a config small in place. Without `sizes`, only counts (of layers, words, experts) shrink."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            if id(value) not in seen:
                shrink(value, sizes, seen | {id(config)})
        elif RANDOM.search(name) and isinstance(value, int | float):
            _set(config, name, False if isinstance(value, bool) else type(value)(0))
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            small = _small(name, sizes)
            if small is not None and value > small:
                _set(config, name, small)
    _match_layers(config)
    _match_heads(config, sizes)
    _match_special_tokens(config)


def _small(name: str, sizes: bool) -> int | None:
    """The small value for a setting of this name; `None` leaves it alone."""
    for pattern, small in SIZES:
        if re.search(f"(?:{pattern})$", name) or re.fullmatch(pattern, name):
            if small is None or sizes:
                return small
            is_count = small <= 8 or "vocab" in name or "words" in name
            return small if is_count and "head" not in name and "rank" not in name else None
    return None


def _match_layers(config: PretrainedConfig) -> None:
    """Shorten the lists with an entry for each layer."""
    layers = getattr(config, "num_hidden_layers", None)
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "block_types"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list) and isinstance(layers, int) and len(kinds) > layers:
            _set(config, name, kinds[-layers:])


def _match_heads(config: PretrainedConfig, sizes: bool) -> None:
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope and sizes:
        rope["mrope_section"] = [2, 3, 3]  # half the head size of 16
    if vars(config).get("head_dim", 16) is None and isinstance(getattr(config, "hidden_size", None), int):
        _set(config, "head_dim", 16 if sizes else config.hidden_size // config.num_attention_heads)


def _match_special_tokens(config: PretrainedConfig) -> None:
    """Move special tokens into the small vocabulary."""
    if not hasattr(config, "vocab_size"):
        return
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and isinstance(value, int) and value >= 64:
            _set(config, name, next((token for word, token in MODALITY_TOKENS.items() if word in name), 2))


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the language model, or of the decoder if the encoder has a vocabulary as well."""
    try:
        return config.get_text_config()
    except ValueError:
        return config.get_text_config(decoder=True)


def _complete(config: PretrainedConfig) -> None:
    """Set the special tokens that a default config leaves to the tokenizer."""
    text = text_config(config)
    for part in {id(config): config, id(text): text}.values():
        for name, value in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2), ("decoder_start_token_id", 0)):
            if getattr(part, name, None) is None:
                _set(part, name, value)
        if getattr(part, "vocab_size", 64) is None:
            _set(part, "vocab_size", 64)


def _set(config: PretrainedConfig, name: str, value: Any) -> None:
    with suppress(AttributeError, TypeError, ValueError, NotImplementedError):  # a property derived from other settings
        setattr(config, name, value)


def build(cls: type[PreTrainedModel], sizes: bool) -> PreTrainedModel:
    """A model with few parameters; without `sizes` a larger one that keeps the default sizes, because those surely match."""
    torch.manual_seed(0)
    config = cls.config_class()  # type: ignore[misc]
    shrink(config, sizes)
    classes = 2 if "QuestionAnswering" in cls.__name__ or "NextSentence" in cls.__name__ else CLASSES
    if hasattr(config, "num_labels") and "Multiple" not in cls.__name__:
        _set(config, "num_labels", classes)
    config.use_cache = False
    _complete(config)
    fix_config(cls.__name__, config, sizes)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters, even when made small")
    model = cls(config)
    if hasattr(model, "set_default_language"):
        model.set_default_language(next(iter(config.languages)))
    return model


def head_classes() -> dict[str, type[PreTrainedModel]]:
    """Every exported class with a head, by name."""
    found = {}
    for name in dir(transformers):
        if HEAD.search(name) and not name.startswith(("Auto", "TF", "Flax")):
            cls = getattr(transformers, name)
            if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and getattr(cls, "config_class", None):
                found[name] = cls
    return found
