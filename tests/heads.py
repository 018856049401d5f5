"""One tiny model for each family of heads: how to build it, a batch, and its loss spelled out on raw logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import interpolate
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForTokenClassification,
    CLIPVisionConfig,
    ConvNextConfig,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SpeechEncoderDecoderModel,
    T5Config,
    T5ForConditionalGeneration,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tests import tiny

V, K, B, S = 40, 5, 8, 9
SMALL = dict(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LLAMA = dict(SMALL, num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2)
BART = dict(
    vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, dropout=0.0, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
)  # fmt: skip


def bert(cls, classes=K):
    return cls(BertConfig(**SMALL, **STILL, num_labels=classes, max_position_embeddings=32))


def with_decoder(cls, encoder):
    decoder = GPT2Config(
        vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=32, add_cross_attention=True, is_decoder=True,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = cls(encoder=encoder, decoder=AutoModelForCausalLM.from_config(decoder))
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    return model


def vision_encoder_decoder():
    config = ViTConfig(**{**SMALL, "vocab_size": None}, image_size=8, patch_size=4)
    return with_decoder(VisionEncoderDecoderModel, ViTModel(config, add_pooling_layer=False))


def wav2vec2():
    return Wav2Vec2Config(
        **SMALL, num_labels=K, conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, hidden_dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False, classifier_proj_size=8,
        final_dropout=0.0,
    )  # fmt: skip


def speech_encoder_decoder():
    return with_decoder(SpeechEncoderDecoderModel, Wav2Vec2Model(wav2vec2()))


def llava():
    vision = CLIPVisionConfig(**{**SMALL, "vocab_size": None}, image_size=8, patch_size=4)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(**LLAMA), image_token_index=V - 1)
    )


def modern_bert():
    config = ModernBertConfig(
        **SMALL, max_position_embeddings=32, sparse_prediction=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    return ModernBertForMaskedLM(config)


def t5():
    config = T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def upernet():
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = UperNetConfig(
        backbone_config=ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=stages),
        hidden_size=8, pool_scales=[1, 2], num_labels=K, use_auxiliary_head=True, auxiliary_in_channels=8,
        auxiliary_channels=8, auxiliary_loss_weight=0.4,
    )  # fmt: skip
    return UperNetForSemanticSegmentation(config)


def segformer():
    config = SegformerConfig(
        **STILL, num_labels=K, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[1, 1], hidden_sizes=[8, 8],
        num_attention_heads=[1, 1], mlp_ratios=[2, 2], patch_sizes=[7, 3], strides=[4, 2], decoder_hidden_size=8,
        classifier_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config)


# ---- batches ----


def tokens(generator, size=B, length=S):
    return torch.randint(3, V, (size, length), generator=generator)


def lengths(generator, size=B, length=S, least=2):
    return torch.randint(least, length + 1, (size, 1), generator=generator)


def tail_ignored(labels, generator):
    """As a collator pads labels: a number of them that differs from row to row."""
    return labels.masked_fill(torch.arange(labels.shape[1]) >= lengths(generator), -100)


def causal(generator):
    ids = tokens(generator)
    return {"input_ids": ids, "labels": tail_ignored(ids, generator)}


def pictures_and_text(generator):
    """Four image tokens before the text, which no label asks for."""
    text = causal(generator)
    places, ignored = torch.full((B, 4), V - 1), torch.full((B, 4), -100)
    return {
        "pixel_values": torch.randn(B, 3, 8, 8, generator=generator),
        "input_ids": torch.cat([places, text["input_ids"].clamp_max(V - 2)], dim=1),
        "labels": torch.cat([ignored, text["labels"]], dim=1),
    }


def masked_lm(generator):
    ids = tokens(generator)
    keep = torch.rand(B, S, generator=generator) < 0.3
    keep[:, 0] = True
    return {"input_ids": ids, "labels": ids.masked_fill(~keep, -100)}


def token_labels(generator):
    return {"input_ids": tokens(generator), "labels": tail_ignored(torch.randint(K, (B, S), generator=generator), generator)}


def answers(generator):
    # some answers lie behind the sequence: the head ignores them
    positions = torch.randint(0, S + 3, (2, B), generator=generator)
    positions[:, 0] = 1
    return {"input_ids": tokens(generator), "start_positions": positions[0], "end_positions": positions[1]}


def choices(generator):
    ids = torch.randint(3, V, (B, 3, S), generator=generator)
    return {"input_ids": ids, "labels": torch.randint(3, (B,), generator=generator)}


def one_label(generator, key="labels", classes=K):
    return {"input_ids": tokens(generator), key: torch.randint(classes, (B,), generator=generator)}


def pretraining(generator):
    return masked_lm(generator) | {"next_sentence_label": torch.randint(2, (B,), generator=generator)}


def sequence_to_sequence(generator):
    return {"input_ids": tokens(generator), "labels": tail_ignored(tokens(generator), generator)}


def speech_to_text(generator):
    return {
        "input_features": torch.randn(B, 8, 40, generator=generator),
        "labels": tail_ignored(tokens(generator), generator),
    }


def image_to_text(generator):
    return {
        "pixel_values": torch.randn(B, 3, 8, 8, generator=generator),
        "labels": tail_ignored(tokens(generator), generator),
    }


def speech(generator):
    return {
        "input_values": torch.randn(B, 400, generator=generator),
        "labels": torch.randint(K, (B,), generator=generator),
    }


def transcripts(generator):
    return speech(generator) | {"labels": tail_ignored(tokens(generator), generator)}


def segmentation(generator):
    labels = torch.randint(K, (B, 32, 32), generator=generator)
    part = torch.rand(B, 1, 1, generator=generator)
    return {
        "pixel_values": torch.randn(B, 3, 32, 32, generator=generator),
        "labels": labels.masked_fill(torch.rand(B, 32, 32, generator=generator) < part, 255),
    }


# ---- losses on raw logits; `loss(logits, labels, **options)` is one of the registry, class dimension last ----


def aligned(loss, outputs, batch):
    return loss(outputs.logits, batch["labels"])


def shifted(loss, outputs, batch):
    return loss(outputs.logits[:, :-1], batch["labels"][:, 1:])


def with_router(loss, outputs, batch, coefficient=0.5):
    return shifted(loss, outputs, batch) + coefficient * outputs.aux_loss


def start_and_end(loss, outputs, batch):
    start = loss(outputs.start_logits, batch["start_positions"].where(batch["start_positions"] < S, -100))
    return (start + loss(outputs.end_logits, batch["end_positions"].where(batch["end_positions"] < S, -100))) / 2


def tokens_and_sentence(loss, outputs, batch):
    tokens = loss(outputs.prediction_logits, batch["labels"])
    return tokens + loss(outputs.seq_relationship_logits, batch["next_sentence_label"])


def pixels(loss, outputs, batch):
    upsampled = interpolate(outputs.logits, size=batch["labels"].shape[-2:], mode="bilinear", align_corners=False)
    return loss(upsampled.movedim(1, -1), batch["labels"], ignore_index=255)


@dataclass(frozen=True)
class Head:
    """
    Attributes:
        loss: `None` where the outputs do not hold all logits.
        smoothed: the stock `label_smoothing_factor` gives the right loss for this head.
        additive: no part of the loss is nonlinear in the batch, so accumulation can be exact.
    """

    build: Callable[[], Any]
    batch: Callable[[torch.Generator], dict[str, Any]]
    loss: Callable[[Any, Any, dict[str, Any]], torch.Tensor] | None
    smoothed: bool = False
    additive: bool = True


HEADS = {
    "image classification": Head(tiny.vit, lambda generator: tiny.batch("vit"), aligned, smoothed=True),
    "sequence classification": Head(tiny.bert, lambda generator: tiny.batch("bert"), aligned, smoothed=True),
    "token classification": Head(partial(bert, BertForTokenClassification), token_labels, aligned, smoothed=True),
    "question answering": Head(partial(bert, BertForQuestionAnswering, classes=2), answers, start_and_end),
    "multiple choice": Head(partial(bert, BertForMultipleChoice), choices, aligned, smoothed=True),
    "next sentence": Head(
        partial(bert, BertForNextSentencePrediction), partial(one_label, classes=2), aligned, smoothed=True
    ),
    "pretraining": Head(partial(bert, BertForPreTraining), pretraining, tokens_and_sentence),
    "masked lm": Head(partial(bert, BertForMaskedLM), masked_lm, aligned, smoothed=True),
    "masked lm, held criterion": Head(
        lambda: DistilBertForMaskedLM(
            DistilBertConfig(vocab_size=V, dim=16, n_layers=1, n_heads=2, hidden_dim=32, dropout=0.0, attention_dropout=0.0)
        ),
        masked_lm,
        aligned,
        smoothed=True,
    ),
    "masked lm, logits of masked positions only": Head(
        modern_bert,
        masked_lm,
        lambda loss, outputs, batch: loss(outputs.logits, batch["labels"][batch["labels"] != -100]),
    ),
    "causal lm": Head(lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), causal, shifted, smoothed=True),
    "vision-language": Head(llava, pictures_and_text, shifted),
    "sequence classification, last token": Head(
        lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=K)), one_label, aligned, smoothed=True
    ),
    "mixture of experts": Head(
        lambda: MixtralForCausalLM(
            MixtralConfig(**LLAMA, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5)
        ),
        causal,
        with_router,
        additive=False,
    ),
    "T5": Head(t5, sequence_to_sequence, aligned),
    "BART": Head(lambda: BartForConditionalGeneration(BartConfig(**BART)), sequence_to_sequence, aligned),
    "Whisper": Head(
        lambda: WhisperForConditionalGeneration(
            WhisperConfig(**BART, num_mel_bins=8, max_source_positions=20, max_target_positions=32)
        ),
        speech_to_text,
        aligned,
    ),
    "vision encoder-decoder": Head(vision_encoder_decoder, image_to_text, aligned),
    "speech encoder-decoder": Head(speech_encoder_decoder, transcripts, aligned),
    "audio classification": Head(lambda: Wav2Vec2ForSequenceClassification(wav2vec2()), speech, aligned, smoothed=True),
    "segmentation with an auxiliary head": Head(upernet, segmentation, None),
    "semantic segmentation": Head(segformer, segmentation, pixels),
}
