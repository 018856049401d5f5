"""Every `accelerate launch` line of the examples' README is one that accelerate and the script take."""

import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from maxsup_hf.trainer.checkpointing import last_checkpoint
from tests import HANGS, warm
from tests.scripts.conftest import NEEDS_TORCHVISION, NO_SEGFORMER

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "accelerate"
README = (ROOT / "examples" / "README.md").read_text().replace("\\\n", " ")
LINES = re.findall(r"^(?:\w+=\S+ )*accelerate launch (.*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
SHORT = [
    *("--max_train_samples", "64", "--max_eval_samples", "32", "--dataloader_pin_memory", "false", "--report_to", "none"),
    *("--disable_tqdm", "true", "--eval_strategy", "no", "--logging_steps", "1"),
]
EXPECTED = {
    "one_gpu": (DistributedType.NO, 1, 1),
    "multi_gpu": (DistributedType.MULTI_GPU, 8, 1),
    "fsdp2": (DistributedType.FSDP, 8, 1),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 8, 1),
    "deepspeed_zero3": (DistributedType.DEEPSPEED, 8, 1),
    "two_nodes": (DistributedType.MULTI_GPU, 16, 2),
    "cpu": (DistributedType.MULTI_GPU, 2, 1),
}


def parsed(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(shlex.split(line)))
    return args


def test_every_config_has_a_line():
    files = {path.stem for path in FOLDER.glob("*.yaml")}
    assert files == set(EXPECTED) == {Path(re.search(r"--config_file (\S+)", line)[1]).stem for line in LINES}


def test_one_process_needs_no_launcher(monkeypatch, tmp_path, capsys):
    (module,) = re.findall(r"^python -m (\S+)", README, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    importlib.import_module(module).main(["--dry_run", *SHORT])
    assert "dry run: " in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_config(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # raises on keys that it does not know
    assert (config.distributed_type, config.num_processes, config.num_machines) == EXPECTED[name]


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_readme(line, monkeypatch, tmp_path, capsys):
    args = parsed(line, monkeypatch)
    kind, processes, machines = EXPECTED[Path(args.config_file).stem]
    assert (args.num_processes, args.num_machines) == (processes, machines)
    assert args.use_fsdp == (kind == DistributedType.FSDP) and args.use_deepspeed == (kind == DistributedType.DEEPSPEED)
    if args.use_fsdp:
        assert int(args.fsdp_version) == 2
    if args.use_deepspeed:
        assert int(args.zero_stage) == int(args.config_file[-6])
    if "semantic_segmentation" in args.training_script and NO_SEGFORMER:
        pytest.skip(NEEDS_TORCHVISION)
    if not args.module:
        assert (ROOT / args.training_script).is_file()
        return
    monkeypatch.chdir(tmp_path)
    flags = [word for word in args.training_script_args if word != "--bf16"]  # that needs the GPU
    importlib.import_module(args.training_script).main([*flags, "--dry_run", *SHORT])
    assert "dry run: " in capsys.readouterr().out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_dry_run_on_two_processes(tmp_path):
    code = "from maxsup_hf.scripts.text_classification import main; main()"
    result = warm.run("-c", code, "--use_cpu", "--dry_run", *SHORT, cwd=tmp_path, processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 process(es) on cpu x batch 32 x accumulation 1 = 64 rows a step" in result.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or not torch.cuda.is_available(),
    reason="needs pip install deepspeed, and a GPU",
)
@pytest.mark.parametrize("name", ["deepspeed_zero2", "deepspeed_zero3"])
def test_deepspeed_trains(name, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", FOLDER / f"{name}.yaml"]
    launch += ["--num_processes", "1", "--main_process_port", "0", "-m", "maxsup_hf.scripts.text_classification"]
    command = [*launch, "--bf16", "--max_steps", "2", "--output_dir", "out", *SHORT]
    result = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_dry_run_finds_what_is_wrong(tmp_path, monkeypatch):
    from maxsup_hf.scripts.text_classification import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["--dry_run", "--loss", "maxsupp", *SHORT])
    assert end.value.code == 2


# ---- SLURM's part played by shell scripts ----

FAKES = {
    "srun": 'SLURM_NODEID=0 "$@" & echo $! > "$WORK/pid"; wait $!',
    "scontrol": 'case $1 in show) echo 127.0.0.1;; requeue) echo "$2" > "$WORK/requeued";; esac',
    "scancel": 'kill -TERM "$(cat "$WORK/pid")"',  # to the launcher, which hands it to both ranks
}


def test_a_slurm_job_ends_early_with_a_checkpoint_is_requeued_and_goes_on(tmp_path):
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "accelerate").write_text(f'#!/bin/bash\nexec {sys.executable} -m accelerate.commands.accelerate_cli "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"main_process_port: {free.getsockname()[1]}\n"
    (tmp_path / "cpu.yaml").write_text((FOLDER / "cpu.yaml").read_text() + port)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "WORK": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "here", "MAXSUP_CONFIG": str(tmp_path / "cpu.yaml"),
    }  # fmt: skip
    output = tmp_path / "out"
    job = ["bash", str(FOLDER / "slurm.sh"), "text_classification", "--output_dir", str(output), *SHORT]
    job += ["--save_strategy", "steps", "--save_steps", "1000000"]

    log = tmp_path / "log"
    with log.open("w") as file:
        first = subprocess.Popen([*job, "--max_steps", "1000000"], cwd=tmp_path, env=environment, stdout=file, stderr=file)
        for _ in range(600):
            time.sleep(0.2)
            if re.search(r"step \d+ of 1000000", log.read_text()) or first.poll() is not None:
                break
        first.send_signal(signal.SIGUSR1)
        code = first.wait(120)
    assert code == 1 and (tmp_path / "requeued").read_text() == "7\n", log.read_text()[-3000:]
    checkpoint = last_checkpoint(output)
    step = int(Path(checkpoint).name.removeprefix("checkpoint-"))
    assert f"ended by SIGTERM after step {step} of 1000000, saved" in log.read_text()

    (tmp_path / "requeued").unlink()
    # this time the launcher only notes what it was to launch, in processes that begin with everything imported
    (tmp_path / "accelerate").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$WORK/words"\n')
    second = subprocess.run(
        [*job, "--max_steps", str(step + 2)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert not (tmp_path / "requeued").exists()
    words = (tmp_path / "words").read_text().splitlines()
    module, *flags = words[words.index("-m") + 1 :]
    resumed = warm.run("-c", f"from {module} import main; main()", "--use_cpu", *flags, cwd=tmp_path, processes=2)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f'"global_step": {step + 2}' in (output / "trainer_state.json").read_text()
