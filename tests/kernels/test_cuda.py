"""The Triton kernel, interpreted on the CPU, and compiled for GPUs that need not be there."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import HANGS

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs the package triton (Linux; it comes with torch for CUDA)"
)


@needs_triton
def test_interpreted():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("interpreted_cuda.py")),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stdout[-5000:]
    assert not re.search("skipped|deselected|xfailed", result.stdout)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_it_compiles_and_a_row_stays_in_registers(dtype, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tests.kernels import compiled_cuda

    for classes in compiled_cuda.CLASSES:
        for soft, write in ((False, False), (False, True), (True, True)):
            compiled = compiled_cuda.compile_row(capability, dtype, classes, soft, write)
            registers, stack, shared = compiled_cuda.usage(compiled)
            assert registers <= 255 and shared <= 2048
            assert stack <= 64 * soft, "spilled"
            if write and not soft and classes <= compiled_cuda.cuda.IN_REGISTERS and dtype != "fp32":
                assert compiled_cuda.label_is_read_before_warps_meet(compiled)
    assert compiled_cuda.usage(compiled_cuda.compile_times(capability, dtype))[1] == 0
