"""The check before training finds what would fail in training, and leaves no trace."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from maxsup_hf.scripts import image_classification, text_classification
from maxsup_hf.scripts.common import run
from maxsup_hf.scripts.common.rehearsal import rehearse
from tests.scripts.conftest import image_folder, results, texts

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--max_eval_samples", "20", "--save_strategy", "no"]
MIXED = ["--mixup_alpha", "0.8", "--augmentation", "crop_flip", "--random_erasing", "0.5"]


def test_training_is_the_same_with_and_without(monkeypatch, tmp_path):
    """The default model has batch normalisation; Mixup and augmentation draw random numbers."""
    found = []
    for folder in ("with", "without"):
        if folder == "without":
            monkeypatch.setattr(run, "rehearse", lambda trainer: None)
        image_classification.main([*SHORT, *MIXED, "--output_dir", folder])
        found.append(load_file(f"{folder}/model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_it_leaves_no_trace(tmp_path):
    trainer = image_classification.prepare([*SHORT, "--output_dir", "out"]).trainer
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    rehearse(trainer)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert trainer.optimizer is None and trainer.trained_loss is None and trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def refused(script, argv, capsys):
    with pytest.raises(SystemExit) as end:
        script.main([*argv, "--output_dir", "out"])
    said = capsys.readouterr()
    assert end.value.code == 2 and "Traceback" not in said.err
    return said.err.splitlines()[-1]


def test_a_processor_of_another_size_than_the_model(tmp_path, capsys):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained("model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained("model")
    argv = ["--train_dir", image_folder(tmp_path / "photos"), "--model_name_or_path", "model"]
    line = refused(image_classification, argv, capsys)
    assert "cannot be trained on" in line and "16" in line and "32" in line
    image_classification.main([*argv, "--image_size", "16", "--dry_run", "true", "--output_dir", "out"])


def test_only_the_head_is_trained(tmp_path):
    job = text_classification.prepare(["--train_file", texts(), "--freeze_backbone", "true", "--output_dir", "out"])
    trained = [name for name, parameter in job.trainer.model.named_parameters() if parameter.requires_grad]
    assert trained == ["classifier.weight", "classifier.bias"]


def test_early_stopping_keeps_the_best_model(tmp_path, capsys):
    """With a learning rate of 0 no evaluation is better than the first."""
    argv = ["--train_file", texts(), "--learning_rate", "0", "--num_train_epochs", "6", "--early_stopping_patience", "2"]
    text_classification.main([*argv, "--output_dir", "out"])
    assert results("out")["epoch"] == 3
