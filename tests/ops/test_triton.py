"""The Triton kernel, interpreted on the CPU, and compiled for GPUs that this machine need not have."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import HANGS

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs the package triton (Linux; installed with torch for CUDA)"
)


@needs_triton
def test_interpreted():
    file = str(Path(__file__).with_name("interpreted_triton.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stdout[-5000:]
    assert not re.search("skipped|deselected|xfailed", result.stdout)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_it_compiles_and_a_row_stays_in_registers(dtype, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tests.ops import compiled_triton

    for classes in compiled_triton.CLASSES:
        for soft in (False, True):
            for stats, write in ((True, False), (True, True), (False, True)):
                compiled = compiled_triton.compile_row(capability, dtype, classes, soft, stats, write)
                registers, stack, shared = compiled_triton.usage(compiled)
                assert registers <= 255 and shared <= 2048
                assert stack <= 80 * soft, f"spilled: {classes=}, {soft=}, {stats=}, {write=}"
    assert compiled_triton.usage(compiled_triton.compile_times(capability, dtype))[1] == 0
