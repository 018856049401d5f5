"""The command line as users type it."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from maxsup_hf import cli
from maxsup_hf.losses import get_spec, list_losses
from tests import HANGS, warm
from tests.scripts.conftest import NEEDS_TORCHVISION, NO_SEGFORMER

BIN = Path(sys.executable).parent


def environment(cwd):
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}


def command(*words, cwd):
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=HANGS
    )


def warm_command(*words, cwd, processes=1):
    """As `command`, for `maxsup-hf` or `-c` in a process that begins with everything imported."""
    return warm.run(*words, cwd=cwd, env=environment(cwd), processes=processes)


def test_tasks_are_the_scripts():
    assert {"image-classification", "text-classification"} <= set(cli.tasks())
    for task, line in cli.tasks().items():
        assert (Path(cli.SCRIPTS) / f"{task.replace('-', '_')}.py").is_file()
        assert line.endswith(".")


def test_without_matplotlib(tmp_path):
    """The README's first install command leaves it out: `compare --help` works, and `compare` names what to install."""
    code = (
        "import sys; assert not {'matplotlib', 'maxsup_hf.comparison'} & set(sys.modules); "
        "sys.modules['matplotlib'] = None; from maxsup_hf.cli import main; main(sys.argv[1:])"
    )
    helps, asks = (warm_command("-c", code, "compare", flag, cwd=tmp_path) for flag in ("--help", "digits"))
    assert helps.returncode == 0 and "--losses" in helps.stdout, helps.stderr
    assert asks.returncode == 2 and asks.stderr.startswith("error: ") and "pip install" in asks.stderr, asks.stderr


@pytest.mark.parametrize("words", ["losses", "completion bash", "bench", "compare image-classification"])
def test_a_missing_file_of_losses_is_one_line_of_error(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAXSUP_HF_LOSSES", str(tmp_path / "none.py"))
    with pytest.raises(SystemExit) as exit:
        cli.main(words.split())
    assert exit.value.code == 2 and capsys.readouterr().err.startswith("error: MAXSUP_HF_LOSSES must name Python files")


def test_without_arguments(capsys):
    for words, expected in (([], "push a trained model"), (["train"], "image-classification")):
        with pytest.raises(SystemExit) as exit:
            cli.main(words)
        assert exit.value.code == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["losses", "--help"], ["--version"]])
def test_help_exits_with_0(words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(words)
    assert exit.value.code == 0
    assert {"--help": "train", "train": "image-classification", "losses": "losses"}.get(
        words[0], version("maxsup-hf")
    ) in capsys.readouterr().out


def test_help_imports_neither_torch_nor_transformers():
    source = (
        "import sys; from maxsup_hf.cli import tasks; tasks(); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0


def test_losses(capsys):
    cli.main(["losses"])
    out = capsys.readouterr().out
    for name in list_losses():
        assert f"{name}\n    {get_spec(name).description}\n" in out
    assert "alpha=0.1, alpha_end=0.2" in out


@pytest.mark.parametrize("task", [*cli.tasks(), "text_classification"])
def test_help_of_a_task_shows_every_kind_of_flag(task, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", task, "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    for name in ("--train_file", "--learning_rate", "--loss ", "--loss_kwargs", "--config "):
        assert name in out


@pytest.mark.parametrize("task", cli.tasks())
def test_installed_command(task, tmp_path):
    if task == "semantic-segmentation" and NO_SEGFORMER:
        pytest.skip(NEEDS_TORCHVISION)
    # one task by the program that pip installs, the others faster
    result = (command if task == "text-classification" else warm_command)(
        BIN / "maxsup-hf", "train", task, "--max_steps", "3", "--max_eval_samples", "50", "--loss_kwargs", "alpha=0.2",
        *(["--disable_tqdm", "false"] if task == "text-classification" else []), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"saved to outputs/{task}"
    assert ("3/3" in result.stderr) == ("%|" in result.stderr) == (task == "text-classification"), "bars go to terminals"
    assert result.stdout.count("eval loss ") == 1 and "{'" not in result.stdout
    saved = {path.name for path in (tmp_path / "outputs" / task).iterdir()}
    assert {"all_results.json", "config.json", "model.safetensors", "README.md", "trainer_state.json"} <= saved


COMPLETE = """
source ./completion
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p maxsup-hf | sed 's/.*-F \\([^ ]*\\) .*/\\1/') 2> /dev/null  # compopt complains outside of a completion
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_values(tmp_path, capsys):
    cli.main(["completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)

    def complete(*words):
        return command("bash", "-c", COMPLETE, "bash", "maxsup-hf", *words, cwd=tmp_path).stdout.split()

    assert {"train", "compare", "predict", "completion"} <= set(complete(""))
    assert complete("train", "text-c") == ["text-classification"]
    found = complete("train", "text-classification", "--lo")
    assert {"--loss", "--loss_kwargs", "--log_level"} <= set(found) and "--loss-kwargs" not in found
    assert complete("train", "image-classification", "--loss", "logit_p") == ["logit_penalty"]
    assert complete("train", "sft", "--dry_run", "t") == ["true"]
    assert complete("compare", "multiple-choice", "--see") == ["--seeds"]
    assert complete("predict", "outputs", "--output_f") == ["--output_file"]


def test_zsh_completion_names_every_flag(capsys):
    cli.main(["completion", "zsh"])
    script = capsys.readouterr().out
    assert script.startswith("#compdef maxsup-hf") and "--loss_kwargs[" in script and "text-classification:" in script


def test_bad_input_is_one_line_of_error_and_status_2(tmp_path):
    result = warm_command("maxsup-hf", "train", "text-classification", "--train_file", "no.csv", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: train_file: there is no file 'no.csv'"
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_two_processes(tmp_path):
    result = warm_command(
        "-c", "from maxsup_hf.scripts.image_classification import main; main()", "--use_cpu", "--max_steps", "3",
        "--per_device_train_batch_size", "8", "--max_train_samples", "480", "--max_eval_samples", "51",
        "--output_dir", "run", cwd=tmp_path, processes=2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("saved to run") == 1
    found = (tmp_path / "run" / "all_results.json").read_text()
    assert '"epoch": 0.1,' in found, "3 steps of 2 x 8 rows are a tenth of 480"
    assert '"eval_samples": 51' in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "m", "--output", "x.csv"], "did you mean --output_file? `maxsup-hf predict --help`"),
        (["push", "a", "b", "--privat"], "did you mean --private? `maxsup-hf push --help`"),
        (["card", "a", "--zzz", "1"], "unrecognized arguments: --zzz 1; `maxsup-hf card --help`"),
        (["analyze", "--datset", "x", "m"], "did you mean --dataset? `maxsup-hf analyze --help`"),
        (["push", "a"], "are required: REPO; `maxsup-hf push --help`"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_suggests_the_flag(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and said in line
