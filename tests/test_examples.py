"""Every script in examples/ runs as its README says."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import warm

EXAMPLES = Path(__file__).parents[1] / "examples"
LINES = re.findall(
    r"^(python|torchrun --nproc_per_node 2) examples/(\w+\.py)(.*)$", (EXAMPLES / "README.md").read_text(), re.M
)
COMMANDS = {script: (launcher, flags.split()) for launcher, script, flags in LINES}
PROCESSES = {"python": 1, "torchrun --nproc_per_node 2": 2}
# What makes a command of `maxsup-hf train` short.
SHORT = ["--max_steps", "2", "--max_train_samples", "64", "--max_eval_samples", "32", "--output_dir", "out"]
NEEDS = {"trl_sft.py": "trl", "sentence_transformers_cross_encoder.py": "sentence_transformers", "peft_lora.py": "peft"}
# Cross-entropy that shows learning; untrained it is ln 10 = 2.3, ln 400 = 6.0, ln 3 = 1.1 and ln 256 = 5.5.
LIMITS = {"digits": 1.5, "pages": 5.4, "pairs": 0.9, "bytes": 3.2}


def test_the_readme_has_a_command_for_every_script():
    assert sorted(COMMANDS) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("script", sorted(COMMANDS))
def test_runs(script, tmp_path):
    if script in NEEDS:
        pytest.importorskip(NEEDS[script], reason=f"{script} needs pip install -e '.[examples]'")
    launcher, flags = COMMANDS[script]
    words = [*flags, *(SHORT if flags else [])]
    result = warm.run(EXAMPLES / script, *words, cwd=tmp_path, processes=PROCESSES[launcher])
    assert result.returncode == 0, result.stderr[-3000:]
    if flags:
        assert "eval_accuracy" in json.loads((tmp_path / "out" / "all_results.json").read_text())
    else:
        data, cross_entropy = re.search(r"on unseen (\w+): (\S+)", result.stdout).groups()
        assert float(cross_entropy) < LIMITS[data]


def digits(folder, *flags):
    short = ["--output_dir", folder, "--steps", "12", "--save_steps", "5"]
    return warm.run(EXAMPLES / "no_trainer.py", *short, *flags, cwd=folder.parent)


def test_the_raw_loop_is_resumed_to_the_last_bit(tmp_path):
    pytest.importorskip("tensorboard", reason="tracking to TensorBoard needs pip install tensorboard")
    whole = digits(tmp_path / "whole", "--tracker", "tensorboard")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert list((tmp_path / "whole").rglob("events.out.tfevents.*"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step-12")
    (tmp_path / "cut" / "step-10" / "progress.json").unlink()  # as if killed while it saved
    again = digits(tmp_path / "cut", "--resume")
    assert "step-5" in again.stdout, again.stderr[-3000:]
    expected, found = (load_file(tmp_path / name / "step-12" / "model.safetensors") for name in ("whole", "cut"))
    # Bit for bit: the same program, threads and shapes on one machine, and weights copied into memory that torch aligns, so
    # that both runs choose the same kernels.
    assert all(torch.equal(found[name], expected[name]) for name in expected)
