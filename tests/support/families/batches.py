"""What single families change in the general batch of `inputs`."""

import re
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.families import sound, text, vision
from tests.support.sizes import B, S

# Regular expression for class names -> inputs to replace or add; `None` removes one. Every matching entry applies, in order.
BATCHES: list[tuple[str, Any]] = [
    (r"^Qwen3OmniMoeTalkerFor", lambda model, inputs: {"input_ids": None, "inputs_embeds": torch.randn(B, S, 32)}),
    # a token 0 separates the classes in the text
    (r"GroundingDino", lambda model, inputs: {"input_ids": inputs["input_ids"] * (torch.arange(S) % 4 > 0)}),
    (r"^OneFormer", vision.one_former),
    (r"^RfDetrForInst", vision.object_masks),
    (r"^PI0", vision.robot),
    (r"^Albert.*PreTraining", lambda model, inputs: {"sentence_order_label": torch.tensor([0, 1, 1])}),
    (r"AudioFrameClassification", sound.frames),
    (
        r"^BeitForMasked",
        lambda model, inputs: {"labels": torch.randint(model.config.vocab_size, (int(inputs["bool_masked_pos"].sum()),))},
    ),
    (r"^FlavaForPre", lambda model, inputs: {"input_ids_masked": inputs["input_ids"], "mlm_labels": inputs["input_ids"]}),
    (r"^(Mask2Former|MaskFormer|OneFormer|Eomt|Videomt)", vision.masks),
    (r"^PatchTS", sound.past),
    (
        r"^TimesFm",
        lambda model, inputs: {
            "input_ids": None,
            "past_values": torch.randn(B, 64),
            "future_values": torch.randn(B, model.config.horizon_length),
        },
    ),
    (r"^VideoMAEForPre", vision.masked_video),
    (r"^Wav2Vec2.*PreTraining", sound.negatives),
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
    (
        r"^Qwen3_5ForSequence",
        lambda model, inputs: {"labels": torch.randint(5, (B,))},
    ),  # its forward takes labels in **kwargs
    (r"GroundingDino", vision.image),
    (r"^Sapiens2ForPose", lambda model, inputs: {"labels": torch.rand(B, 5, 56, 56)}),
    (r"^Bros", text.bros),
    (r"^BlipForQuest", lambda model, inputs: {"labels": inputs["input_ids"]}),
    (r"^BridgeTower.*Contrastive", lambda model, inputs: {"return_loss": True, "labels": None}),
    (r"^BridgeTower.*Retrieval|^VisualBert.*Reasoning|^Vilt.*Retrieval", text.one_class),
    (
        r"^CLIPSeg",
        lambda model, inputs: {"pixel_values": vision.pixels(model), "labels": torch.randint(2, (B, 224, 224)).float()},
    ),
    (
        r"^CsmFor",
        lambda model, inputs: {"input_ids": torch.randint(3, 50, (B, S, 4)), "labels": torch.randint(3, 50, (B, S, 4))},
    ),
    (r"^Dia", sound.dia),
    (r"^(PocketTTS|GradiumPhonon)", sound.latent_frames),
    (r"^HiggsAudio", sound.higgs),
    (r"ForRNNT|ForTDT", sound.transducer),
    (r"^Kyutai", lambda model, inputs: {"input_ids": torch.randint(3, 50, (B, S, 5))}),
    (r"^Kosmos2For", vision.kosmos),
    (r"^MoshiForCond", sound.moshi),
    (r"^Rag(Seq|Tok)", text.rag),
    (r"^(Informer|TimeSeriesTransformer)", sound.series),
    (r"^SpeechT5For(Speech|Text)ToSpeech", sound.spectrogram),
    (r"^Siglip2For", vision.patches),
    (r"^SeamlessM4TTextToUnit", lambda model, inputs: {"input_ids": None, "inputs_embeds": torch.randn(B, S, 32)}),
    (
        r"^SegGpt",
        lambda model, inputs: {
            key: torch.randn(B, 3, 448, 448) for key in ("pixel_values", "prompt_pixel_values", "prompt_masks", "labels")
        },
    ),
    (r"^ShieldGemma2", lambda model, inputs: {"labels": inputs["input_ids"]}),
    (r"^Tvp", vision.grounding),
    (r"^Udop", lambda model, inputs: {"bbox": torch.rand(B, S, 4)}),
    (r"^VoxtralRealtime", lambda model, inputs: {"input_features": torch.randn(B, 128, 8 * S)}),
    (r"^Qwen3OmniMoeTalkerCodePredictor", lambda model, inputs: {"generation_steps": 1}),
    (r"^PPFormulaNet", vision.image),
    (
        r"^Pix2Struct",
        lambda model, inputs: {"input_ids": None, "flattened_patches": torch.rand(B, 8, 2 + 32)},
    ),
    (
        r"^Musicgen.*Conditional",
        lambda model, inputs: {"labels": torch.randint(3, 50, (B, S, model.config.decoder.num_codebooks))},
    ),
    (r"^GraniteSpeech5", lambda model, inputs: {"input_features": torch.randn(B, 128, 320)}),
    (r"^Blip2ForCond|^InstructBlipForCond", vision.with_query_tokens),
    (r"^InstructBlipVideo", vision.instruct_video),
    (r"^BlipFor(Cond|Quest)", vision.image),
    (r"^BridgeTower", vision.image),
    (r"^Longformer(ForM|ForQ)", text.separators),
    (r"^LukeForEntity", text.entities),
    (r"^Lxmert", vision.lxmert),
    (r"^VisualBert", vision.visual_bert),
    (r"^Musicgen.*CausalLM", sound.codebooks),
    (r"^Vilt", vision.vilt),
    (r"^GitFor", vision.image),
    (
        r"^Idefics(For)",
        lambda model, inputs: {"pixel_values": vision.pixels(model, B, 1), "image_attention_mask": torch.ones(B, S, 1)},
    ),
    (
        r"^(Lasr|Parakeet|GraniteSpeech5)ForCTC",
        lambda model, inputs: {"attention_mask": torch.ones(inputs["input_features"].shape[:2], dtype=torch.long)},
    ),
    (r"^GLPN", lambda model, inputs: {"labels": 1 + torch.rand(B, *inputs["pixel_values"].shape[-2:])}),
]


def fix_batch(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """The general batch, changed as the class needs."""
    for pattern, change in BATCHES:
        if re.search(pattern, type(model).__name__):
            inputs = inputs | change(model, inputs)
    return {key: value for key, value in inputs.items() if value is not None}
