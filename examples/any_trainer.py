"""MaxSup in a stock `transformers.Trainer`, if you cannot use another Trainer class.

The loss is passed twice: as `compute_loss_func`, and as a callback that tells it the progress of training, with which alpha
rises.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from maxsup_hf import compute_loss_func

images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]

model = ViTForImageClassification(
    ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, num_labels=10,
    )
)  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    loss = compute_loss_func("maxsup", model=model)
    args = TrainingArguments(folder, max_steps=200, learning_rate=2e-3, per_device_train_batch_size=64, save_strategy="no")
    trainer = Trainer(
        model, args, train_dataset=rows[:1500], eval_dataset=rows[1500:], compute_loss_func=loss, callbacks=[loss]
    )
    trainer.train()
    print(f"cross-entropy on unseen digits: {trainer.evaluate()['eval_loss']:.3f}")
