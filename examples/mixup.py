"""Mixup and CutMix with MaxSup: mixed images and soft labels in training, unmixed ones in evaluation.

In a stock `Trainer` pass the same collator as a callback too: see `maxsup_hf.MixupCollator`.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, MixupCollator

images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]

model = ResNetForImageClassification(
    ResNetConfig(num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10)
)

with tempfile.TemporaryDirectory() as folder:
    args = MaxSupTrainingArguments(
        folder, max_steps=150, learning_rate=5e-3, per_device_train_batch_size=64, save_strategy="no", loss="maxsup"
    )
    trainer = MaxSupTrainer(
        model,
        args,
        data_collator=MixupCollator(num_classes=10, mixup_alpha=0.2, cutmix_alpha=0.2),
        train_dataset=rows[:1500],
        eval_dataset=rows[1500:],
    )
    trainer.train()
    print(f"cross-entropy on unseen digits: {trainer.evaluate()['eval_loss']:.3f}")
