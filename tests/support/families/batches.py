"""What single families change in the general batch of `inputs`."""

import re
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.families.sound import (
    codebooks,
    dia,
    frames,
    higgs,
    latent_frames,
    moshi,
    negatives,
    past,
    series,
    spectrogram,
    transducer,
)
from tests.support.families.text import bros, entities, one_class, rag, separators
from tests.support.families.vision import (
    grounding,
    image,
    instruct_video,
    kosmos,
    lxmert,
    masked_video,
    masks,
    object_masks,
    one_former,
    patches,
    pixels,
    robot,
    vilt,
    visual_bert,
    with_query_tokens,
)
from tests.support.sizes import B, S

# Regular expression for class names -> inputs to replace or add; `None` removes one. Every matching entry applies, in order.
BATCHES: list[tuple[str, Any]] = [
    (r"^Qwen3OmniMoeTalkerFor", lambda model, inputs: {"input_ids": None, "inputs_embeds": torch.randn(B, S, 32)}),
    # a token 0 separates the classes in the text
    (r"GroundingDino", lambda model, inputs: {"input_ids": inputs["input_ids"] * (torch.arange(S) % 4 > 0)}),
    (r"^OneFormer", one_former),
    (r"^RfDetrForInst", object_masks),
    (r"^PI0", robot),
    (r"^Albert.*PreTraining", lambda model, inputs: {"sentence_order_label": torch.tensor([0, 1, 1])}),
    (r"AudioFrameClassification", frames),
    (
        r"^BeitForMasked",
        lambda model, inputs: {"labels": torch.randint(model.config.vocab_size, (int(inputs["bool_masked_pos"].sum()),))},
    ),
    (r"^FlavaForPre", lambda model, inputs: {"input_ids_masked": inputs["input_ids"], "mlm_labels": inputs["input_ids"]}),
    (r"^(Mask2Former|MaskFormer|OneFormer|Eomt|Videomt)", masks),
    (r"^PatchTS", past),
    (
        r"^TimesFm",
        lambda model, inputs: {
            "input_ids": None,
            "past_values": torch.randn(B, 64),
            "future_values": torch.randn(B, model.config.horizon_length),
        },
    ),
    (r"^VideoMAEForPre", masked_video),
    (r"^Wav2Vec2.*PreTraining", negatives),
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
    (r"GroundingDino", image),
    (r"^Sapiens2ForPose", lambda model, inputs: {"labels": torch.rand(B, 5, 56, 56)}),
    (r"^Bros", bros),
    (r"^BlipForQuest", lambda model, inputs: {"labels": inputs["input_ids"]}),
    (r"^BridgeTower.*Contrastive", lambda model, inputs: {"return_loss": True, "labels": None}),
    (r"^BridgeTower.*Retrieval|^VisualBert.*Reasoning|^Vilt.*Retrieval", one_class),
    (
        r"^CLIPSeg",
        lambda model, inputs: {"pixel_values": pixels(model), "labels": torch.randint(2, (B, 224, 224)).float()},
    ),
    (
        r"^CsmFor",
        lambda model, inputs: {"input_ids": torch.randint(3, 50, (B, S, 4)), "labels": torch.randint(3, 50, (B, S, 4))},
    ),
    (r"^Dia", dia),
    (r"^(PocketTTS|GradiumPhonon)", latent_frames),
    (r"^HiggsAudio", higgs),
    (r"ForRNNT|ForTDT", transducer),
    (r"^Kyutai", lambda model, inputs: {"input_ids": torch.randint(3, 50, (B, S, 5))}),
    (r"^Kosmos2For", kosmos),
    (r"^MoshiForCond", moshi),
    (r"^Rag(Seq|Tok)", rag),
    (r"^(Informer|TimeSeriesTransformer)", series),
    (r"^SpeechT5For(Speech|Text)ToSpeech", spectrogram),
    (r"^Siglip2For", patches),
    (r"^SeamlessM4TTextToUnit", lambda model, inputs: {"input_ids": None, "inputs_embeds": torch.randn(B, S, 32)}),
    (
        r"^SegGpt",
        lambda model, inputs: {
            key: torch.randn(B, 3, 448, 448) for key in ("pixel_values", "prompt_pixel_values", "prompt_masks", "labels")
        },
    ),
    (r"^ShieldGemma2", lambda model, inputs: {"labels": inputs["input_ids"]}),
    (r"^Tvp", grounding),
    (r"^Udop", lambda model, inputs: {"bbox": torch.rand(B, S, 4)}),
    (r"^VoxtralRealtime", lambda model, inputs: {"input_features": torch.randn(B, 128, 8 * S)}),
    (r"^Qwen3OmniMoeTalkerCodePredictor", lambda model, inputs: {"generation_steps": 1}),
    (r"^PPFormulaNet", image),
    (
        r"^Pix2Struct",
        lambda model, inputs: {"input_ids": None, "flattened_patches": torch.rand(B, 8, 2 + 32)},
    ),
    (
        r"^Musicgen.*Conditional",
        lambda model, inputs: {"labels": torch.randint(3, 50, (B, S, model.config.decoder.num_codebooks))},
    ),
    (r"^GraniteSpeech5", lambda model, inputs: {"input_features": torch.randn(B, 128, 320)}),
    (r"^Blip2ForCond|^InstructBlipForCond", with_query_tokens),
    (r"^InstructBlipVideo", instruct_video),
    (r"^BlipFor(Cond|Quest)", image),
    (r"^BridgeTower", image),
    (r"^Longformer(ForM|ForQ)", separators),
    (r"^LukeForEntity", entities),
    (r"^Lxmert", lxmert),
    (r"^VisualBert", visual_bert),
    (r"^Musicgen.*CausalLM", codebooks),
    (r"^Vilt", vilt),
    (r"^GitFor", image),
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
    """The general batch, changed as the class needs."""
    for pattern, change in BATCHES:
        if re.search(pattern, type(model).__name__):
            inputs = inputs | change(model, inputs)
    return {key: value for key, value in inputs.items() if value is not None}
