"""Heads without a cross-entropy over classes: refused in words, before anything is trained."""

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    ViltConfig,
    ViltForQuestionAnswering,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
    ViTConfig,
    ViTForMaskedImageModeling,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    YolosConfig,
    YolosForObjectDetection,
)

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.trainer.validation import check_liger
from tests import tiny

SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def ctc():
    config = Wav2Vec2Config(
        **SMALL, vocab_size=12, conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, apply_spec_augment=False,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config), {"input_values": torch.randn(2, 400), "labels": torch.randint(1, 12, (2, 5))}


def contrastive():
    vision = dict(SMALL, image_size=8, patch_size=4)
    model = CLIPModel(CLIPConfig(text_config=dict(SMALL, vocab_size=20), vision_config=vision, projection_dim=8))
    ids, pixels = torch.randint(3, 20, (2, 5)), torch.randn(2, 3, 8, 8)
    return model, {"input_ids": ids, "pixel_values": pixels, "return_loss": True}


def detection():
    config = YolosConfig(**SMALL, image_size=[16, 16], patch_size=8, num_detection_tokens=4, num_labels=3)
    objects = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    return YolosForObjectDetection(config), {"pixel_values": torch.randn(2, 3, 16, 16), "labels": objects}


def reconstruction():
    config = ViTConfig(**SMALL, image_size=8, patch_size=4, encoder_stride=4)
    masked = torch.tensor([[1, 0, 0, 1]] * 2).bool()
    return ViTForMaskedImageModeling(config), {"pixel_values": torch.randn(2, 3, 8, 8), "bool_masked_pos": masked}


def divergence():
    model = VisualBertForQuestionAnswering(VisualBertConfig(**SMALL, vocab_size=20, visual_embedding_dim=8, num_labels=3))
    words = {"input_ids": torch.randint(3, 20, (2, 5)), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    words |= {"visual_embeds": torch.randn(2, 4, 8), "visual_attention_mask": torch.ones(2, 4, dtype=torch.long)}
    return model, words | {"labels": torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])}


def answers():
    """Several answers may be right: the loss is a binary cross-entropy, though these rows happen to sum to 1."""
    model = ViltForQuestionAnswering(ViltConfig(**SMALL, vocab_size=20, image_size=8, patch_size=4, num_labels=3))
    labels = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    return model, {"input_ids": torch.randint(3, 20, (2, 5)), "pixel_values": torch.randn(2, 3, 8, 8), "labels": labels}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (divergence, "VisualBertForQuestionAnswering failed on the integer labels that stand in for them"),
        (answers, "ViltForQuestionAnswering failed on the integer labels that stand in for them"),
        (ctc, "Wav2Vec2ForCTC trained on a loss without a cross-entropy"),
        (contrastive, "no class labels .it has: input_ids, pixel_values, return_loss"),
        (detection, "no class labels .it has: pixel_values, labels"),
        (reconstruction, "no class labels .it has: pixel_values, bool_masked_pos"),
    ],
)
def test_heads(build, message, tmp_path):
    model, batch = build()
    trainer = MaxSupTrainer(model, MaxSupTrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match=message):
        tiny.gradients(trainer, [batch])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("config", [None, {"cross_entropy": True, "fused_linear_cross_entropy": False}])
def test_liger(config, tmp_path):
    args = MaxSupTrainingArguments(str(tmp_path), use_cpu=True)
    args.use_liger_kernel, args.liger_kernel_config = True, config
    with pytest.raises(ValueError, match="use_liger_kernel computes cross-entropy"):
        check_liger(args)
    args.liger_kernel_config = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    check_liger(args)


@pytest.mark.parametrize(
    "error", [NotImplementedError("Training is not implemented yet"), ValueError("X is not trainable, no labels please")]
)
def test_a_head_that_transformers_gives_no_loss(error, tmp_path):
    model = tiny.vit()

    def forward(*args, **kwargs):
        raise error

    model.forward = forward
    trainer = MaxSupTrainer(model, MaxSupTrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="ViTForImageClassification is a head that transformers gives no loss") as caught:
        trainer.training_step(model, tiny.batch("vit"))
    assert caught.value.__cause__ is error
