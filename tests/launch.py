"""Two real processes on the CPU (gloo)."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate import PartialState

from tests import HANGS, warm


def two_processes(*command):
    """Run a script with its arguments as two processes, as `torchrun` starts them; `launched` takes the real launcher."""
    script, *flags = command
    result = warm.run(script, *flags, cwd=Path.cwd(), processes=2)
    assert result.returncode == 0, result.stderr[-3000:]


def launched(*command):
    """Run a script with its arguments by `accelerate launch`. (`--multi_gpu` is how accelerate starts several processes,
    also on a CPU: with `--cpu` it starts one, whatever `--num_processes` says. Let scripts write how many they were.)"""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0"]  # fmt: skip
    result = subprocess.run([*launch, *map(str, command)], capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stderr[-3000:]


def end_of_a_rank():
    """The end of a script that `two_processes` runs. On a busy machine gloo's threads now and then abort a process that
    Python takes down around them ("terminate called without an active exception"), so nothing is taken down."""
    PartialState().wait_for_everyone()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
