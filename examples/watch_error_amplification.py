"""Log the two terms of label smoothing (arXiv 2502.15798, Corollary 3.4) at each evaluation of a run.

`regularization` lowers the confidence of correct predictions. `error_amplification` is at most 0: it rewards wrong
predictions for their confidence.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, ls_decomposition

images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]


def compute_metrics(prediction):
    terms = ls_decomposition(torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids), alpha=0.1)
    return {name: value.item() for name, value in terms._asdict().items()}


model = ViTForImageClassification(
    ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, num_labels=10,
    )
)  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    args = MaxSupTrainingArguments(
        folder, max_steps=200, learning_rate=2e-3, per_device_train_batch_size=64, save_strategy="no", eval_strategy="steps",
        eval_steps=50, loss="label_smoothing", loss_kwargs={"alpha": 0.1},
    )  # fmt: skip
    trainer = MaxSupTrainer(
        model, args, train_dataset=rows[:1500], eval_dataset=rows[1500:], compute_metrics=compute_metrics
    )
    trainer.train()
    for entry in trainer.state.log_history:
        if "eval_loss" in entry:
            print(
                f"step {entry['step']}: regularization {entry['eval_regularization']:.4f}, "
                f"error amplification {entry['eval_error_amplification']:.4f}"
            )
    print(f"cross-entropy on unseen digits: {trainer.evaluate()['eval_loss']:.3f}")
