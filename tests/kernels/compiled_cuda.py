"""Compiles the Triton kernels for GPUs that need not be there, and prints what the assembler says of each.

python tests/kernels/compiled_cuda.py

A line for each: compute capability, dtype, variant, registers, bytes of stack (spilled registers) and of shared memory.
"""

import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from maxsup_hf.kernels import cuda

DTYPES = ("fp32", "bf16", "fp16")
CAPABILITIES = (80, 90)  # A100, H100
CLASSES = (1000, 16384, 128256)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_row(capability, dtype, classes, soft, write):
    one = classes <= cuda.IN_REGISTERS
    block = triton.next_power_of_2(classes) if one else cuda.BLOCK
    signature = {
        "logits": f"*{dtype}", "target": "*fp32" if soft else "*i64", "slopes": "*fp32", "numbers": "*fp32",
        "grad": f"*{dtype}", "classes": "i32", "row_stride": "i32", "masked": "fp32",
        **dict.fromkeys(("SOFT", "WRITE", "BLOCK", "ONE"), "constexpr"),
    }  # fmt: skip
    # what a launch would know: tensors begin at multiples of 16 bytes, and so do rows of 16 × n classes
    known = range(7 if classes % 16 == 0 else 5)
    source = ASTSource(
        cuda._row,
        signature,
        {"SOFT": soft, "WRITE": write, "BLOCK": block, "ONE": one},
        {(argument,): [["tt.divisibility", 16]] for argument in known},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": cuda.warps(block)})


def compile_times(capability, dtype):
    signature = {"values": f"*{dtype}", "factor": "*fp32", "size": "i32", "BLOCK": "constexpr"}
    source = ASTSource(cuda._times, signature, {"BLOCK": 4096})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def label_is_read_before_warps_meet(kernel):
    """Whether no logit is read after the last barrier. For one pass over 16-bit logits and hard labels, where nothing else
    is 16 bits wide. In place, a warp that came later would find another's gradient."""
    ptx = kernel.asm["ptx"]
    _, barrier, after = ptx.rpartition("bar.sync")
    assert barrier and re.search(r"ld\.global[.\w]*\.b16", ptx)
    return not re.search(r"ld\.global[.\w]*\.b16", after)


def usage(kernel):
    """(registers, bytes of stack, bytes of shared memory)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return tuple(int(re.search(rf"{name}:(\d+)", said.stdout)[1]) for name in ("REG", "STACK", "SHARED"))


def main():
    for capability, dtype in product(CAPABILITIES, DTYPES):
        for classes, soft, write in product(CLASSES, (False, True), (False, True)):
            found = usage(compile_row(capability, dtype, classes, soft, write))
            print(capability, dtype, f"K={classes}{' soft' * soft}{' gradient' * write}", *found, flush=True)
        print(capability, dtype, "times", *usage(compile_times(capability, dtype)), flush=True)


if __name__ == "__main__":
    main()
