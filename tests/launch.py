"""Two real processes on the CPU (gloo)."""

import os
import sys
from pathlib import Path

from accelerate import PartialState

from tests import warm


def two_processes(*command):
    """Run a script with its arguments as two processes, as `torchrun` starts them. (Let scripts write how many they were.)
    test_launch_configs.py takes the real launcher."""
    script, *flags = command
    result = warm.run(script, *flags, cwd=Path.cwd(), processes=2)
    assert result.returncode == 0, result.stderr[-3000:]


def end_of_a_rank():
    """The end of a script that `two_processes` runs. On a busy machine gloo's threads now and then abort a process that
    Python takes down around them ("terminate called without an active exception"), so nothing is taken down."""
    PartialState().wait_for_everyone()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
