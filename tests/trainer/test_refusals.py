"""Heads without a cross-entropy over classes are rejected before anything is trained, and the error says why."""

import re

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
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


class Ranker(BertForSequenceClassification):
    """Of a kind for which transformers has no loss: it calls that of causal language models, with arguments of its own."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.classifier(self.bert(input_ids, attention_mask).pooler_output)
        return {"loss": self.loss_function(logits=logits, labels=labels, margin=0.1), "logits": logits}


def silent():
    """Its forward takes labels, and returns no loss."""
    return DeiTForImageClassificationWithTeacher(DeiTConfig(**SMALL, image_size=8, patch_size=4, num_labels=tiny.CLASSES))


def ranker():
    model = Ranker(tiny.bert().config)
    assert model.loss_type is None
    return model


@pytest.mark.parametrize(
    ("build", "batch", "message"),
    [(ranker, "bert", "Ranker is a head that .* no loss"), (silent, "vit", "DeiT.*WithTeacher is a head that .* no loss")],
)
def test_heads_whose_loss_is_missing(build, batch, message, tmp_path):
    trainer = MaxSupTrainer(build(), MaxSupTrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match=message):
        trainer.training_step(trainer.model, tiny.batch(batch))


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError])
@pytest.mark.parametrize("words", ["X is not trainable", "does not support training", "ForCausalLMLoss() missing"])
def test_what_an_exception_says_does_not_matter(error, words, tmp_path):
    """It is raised inside of the model, or by a forward that has a loss and refuses its inputs: it speaks for itself."""
    model, batch = tiny.bert(), tiny.batch("bert")
    trainer = MaxSupTrainer(model, MaxSupTrainingArguments(str(tmp_path), use_cpu=True))

    def raises(*args, **kwargs):
        raise error(words)

    hook = model.bert.register_forward_pre_hook(raises)
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        trainer.training_step(model, batch)
    hook.remove()
    llama = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=40, pad_token_id=None))
    trainer = MaxSupTrainer(llama, MaxSupTrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="^Cannot handle batch sizes > 1"):
        trainer.training_step(llama, {"input_ids": batch["input_ids"], "labels": batch["labels"] % 2})


def test_soft_labels_that_the_cross_entropy_rejects(tmp_path):
    """The model did reach its cross-entropy: nothing is said of the labels that stand in for soft ones."""
    trainer = MaxSupTrainer(tiny.vit(), MaxSupTrainingArguments(str(tmp_path), use_cpu=True))
    batch = tiny.batch("vit") | {"soft_labels": torch.rand(8, 4).softmax(-1)}
    with pytest.raises(ValueError, match=r"^soft_labels must have the shape of the logits, \(8, 5\), got \(8, 4\)"):
        trainer.training_step(trainer.model, batch)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("stored", [True, False], ids=["datasets", "list"])
def test_labels_that_are_all_ignored(kind, stored, tmp_path):
    model, labels = (
        (tiny.bert(), -100) if kind == "bert" else (LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=20)), [-100] * 3)
    )
    rows = [{"input_ids": [3, 4, 5], "labels": labels} for _ in range(4)]
    args = MaxSupTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=1)
    with pytest.raises(ValueError, match=r"^all (4|12) labels of train_dataset are -100, which is ignored"):
        MaxSupTrainer(model, args, train_dataset=Dataset.from_list(rows) if stored else rows).train()
    rows[3]["labels"] = 1 if kind == "bert" else [-100, -100, 4]
    MaxSupTrainer(model, args, train_dataset=Dataset.from_list(rows) if stored else rows).check()
