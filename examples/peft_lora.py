"""MaxSup with LoRA: PEFT wraps the model, and nothing else changes. Only the adapter is trained, saved and pushed."""

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments

images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]

torch.manual_seed(0)
# In place of a pretrained model, `AutoModelForImageClassification.from_pretrained("google/vit-base-patch16-224", …)`.
model = ViTForImageClassification(
    ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, num_labels=10,
    )
)  # fmt: skip
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["classifier"])
model = get_peft_model(model, lora)
model.print_trainable_parameters()

with tempfile.TemporaryDirectory() as folder:
    args = MaxSupTrainingArguments(
        folder, max_steps=200, learning_rate=5e-3, per_device_train_batch_size=64, save_strategy="no", loss="maxsup",
        label_names=["labels"],  # the Trainer cannot read them from the wrapper
    )  # fmt: skip
    trainer = MaxSupTrainer(model, args, train_dataset=rows[:1500], eval_dataset=rows[1500:])
    trainer.train()
    trainer.save_model()  # adapter_model.safetensors
    print(f"cross-entropy on unseen digits: {trainer.evaluate()['eval_loss']:.3f}")
