"""What version 0.1.0 wrote, and what its users type, still works; see `version_0_1/README.md`."""

import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from maxsup_hf import MaxSupTrainingArguments, cli
from maxsup_hf.losses._labels import loss_label
from tests.test_cli import BIN, warm_command

BEFORE = Path(__file__).with_name("version_0_1")
FLAGS = {name: set(flags.split()) for name, flags in json.loads((BEFORE / "flags.json").read_text()).items()}
NAMES = {
    "maxsup_hf": "MaxSupArgumentsMixin MaxSupMixin MaxSupSeq2SeqTrainer MaxSupSeq2SeqTrainingArguments MaxSupTrainer "
    "MaxSupTrainingArguments MixupCollator compute_loss_func create_loss fused_linear_loss list_losses ls_decomposition "
    "maxsup_loss register_loss vocab_parallel_loss",
    "maxsup_hf.analysis.analyze": "analyze",
    "maxsup_hf.analysis.features": "FeatureRows extract find_classifier",
    "maxsup_hf.analyze": "main",
    "maxsup_hf.arguments": "MaxSupArgumentsMixin MaxSupSeq2SeqTrainingArguments MaxSupTrainingArguments",
    "maxsup_hf.callbacks": "FeatureGeometryCallback",
    "maxsup_hf.checkpoints": "CheckpointError last_checkpoint",
    "maxsup_hf.compute_loss": "ComputeLoss compute_loss_func",
    "maxsup_hf.fused_linear": "fused_linear_loss",
    "maxsup_hf.mixup": "MixupCollator mix_targets",
    "maxsup_hf.trainer": "MaxSupMixin MaxSupSeq2SeqTrainer MaxSupTrainer",
    "maxsup_hf.vocab_parallel": "vocab_parallel_loss",
}


@pytest.mark.parametrize(("module", "names"), NAMES.items())
def test_names(module, names):
    for name in names.split():
        assert getattr(import_module(module), name).__doc__


def test_a_module_that_moved_is_one_module():
    old, new = import_module("maxsup_hf.arguments"), import_module("maxsup_hf.trainer.training_args")
    assert old is new and new.__spec__.name == "maxsup_hf.trainer.training_args"


@pytest.mark.parametrize("name", [name for name in FLAGS if name != "every task"])
def test_flags(name, capsys):
    task = name in cli.tasks()
    with pytest.raises(SystemExit) as end:
        cli.main(["train", name, "--help_all"] if task else [name, "--help"])
    wanted = FLAGS[name] | (FLAGS["every task"] if task else set())
    assert end.value.code == 0 and wanted <= set(re.findall(r"--([a-z_0-9-]+)", capsys.readouterr().out))


def test_training_arguments_of_a_checkpoint():
    args = torch.load(BEFORE / "run" / "checkpoint-25" / "training_args.bin", weights_only=False)
    assert type(args) is MaxSupTrainingArguments
    assert args.loss == "online_label_smoothing" and len(args.class_weights) == 10


def test_a_checkpoint_resumes_to_the_same_model_and_card(tmp_path):
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    final = load_file(tmp_path / "run" / "model.safetensors")
    start = load_file(tmp_path / "run" / "checkpoint-25" / "model.safetensors")
    (tmp_path / "run" / "model.safetensors").unlink()
    flags = json.loads((BEFORE / "run" / "run.json").read_text())["command"].split()[3:]
    flags[flags.index("--config_name") + 1] = str(BEFORE / "run")
    flags += ["--resume_from_checkpoint", "true"]
    trained = warm_command(BIN / "maxsup-hf", "train", "image-classification", *flags, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    moved = max((final[name] - start[name]).abs().max() for name in final)
    assert all((resumed[name] - final[name]).abs().max() < 0.01 * moved for name in final)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").num_labels == 10


def test_a_card_is_written_from_what_a_run_recorded(tmp_path):
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    before = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "run" / "README.md").write_text(before + "\nMy own words.\n", encoding="utf-8")
    cli.main(["card", str(tmp_path / "run")])
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    values = re.findall(r"\| ([\d.]{4,}) \|", before)
    assert values and set(values) <= set(re.findall(r"\| ([\d.]{4,}) \|", card)) and "My own words." in card


def test_a_comparison_is_reported(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib (pip install -e '.[analysis]')")
    shutil.copytree(BEFORE / "comparison", tmp_path / "comparison")
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "--report_only", str(tmp_path / "comparison")])
    assert end.value.code == 0
    before, after = ((folder / "comparison" / "table.md").read_text(encoding="utf-8") for folder in (BEFORE, tmp_path))
    row = r"(?m)^\| (\w[^|]*) \| (.*\d.*)\|$"
    written = [(loss_label(name), cells) for name, cells in re.findall(row, before)]  # version 0.1 wrote keys of losses
    assert re.findall(row, after) == written != []
