"""Every script in examples/ runs as its README says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = dict(re.findall(r"^python examples/(\w+\.py)(.*)$", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE))
# What makes a command of `maxsup-hf train` short.
SHORT = ["--max_steps", "2", "--max_train_samples", "64", "--max_eval_samples", "32", "--output_dir", "out"]


def test_the_readme_has_a_command_for_every_script():
    assert sorted(COMMANDS) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("script", sorted(COMMANDS))
def test_runs(script, tmp_path):
    flags = COMMANDS[script].split()
    command = [sys.executable, str(EXAMPLES / script), *flags, *(SHORT if flags else [])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    if flags:
        assert "eval_accuracy" in json.loads((tmp_path / "out" / "all_results.json").read_text())
    else:
        assert float(re.search(r"unseen digits: (\S+)", result.stdout)[1]) < 1.5  # untrained: ln 10 = 2.3
