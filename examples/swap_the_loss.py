"""MaxSup in place of label smoothing: change two class names and one flag."""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments

images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]

config = ViTConfig(
    image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, num_labels=10,
)  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    args = MaxSupTrainingArguments(
        folder, loss="maxsup", max_steps=200, learning_rate=2e-3, per_device_train_batch_size=64, save_strategy="no"
    )
    trainer = MaxSupTrainer(ViTForImageClassification(config), args, train_dataset=rows[:1500], eval_dataset=rows[1500:])
    trainer.train()
    print(f"cross-entropy on unseen digits: {trainer.evaluate()['eval_loss']:.3f}")
