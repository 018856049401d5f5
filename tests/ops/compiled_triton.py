"""Compile the Triton kernels for GPUs that this machine need not have, and print the resources that each uses.

python tests/ops/compiled_triton.py

Each line has the compute capability, dtype, variant, registers, bytes of stack (spilled registers) and of shared memory.
"""

import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from maxsup_hf.ops import rows_triton

DTYPES = ("fp32", "bf16", "fp16")
CAPABILITIES = (80, 90)  # A100, H100
CLASSES = (1000, 16384, 128256)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_row(capability, dtype, classes, soft, stats, write, moments=False):
    one = classes <= rows_triton.IN_REGISTERS
    block = triton.next_power_of_2(classes) if one else rows_triton.BLOCK
    signature = {
        "logits": f"*{dtype}", "target": "*fp32" if soft else "*i64", "slopes": "*fp32", "stats": "*fp32", "index": "*i64",
        "grad": f"*{dtype}", "classes": "i32", "row_step": "i32", "slopes_step": "i32", "ignore_index": "i32",
        **dict.fromkeys(("SOFT", "MOMENTS", "STATS", "WRITE", "BLOCK", "ONE"), "constexpr"),
    }  # fmt: skip
    # what Triton would find out at a launch: tensors begin at multiples of 16 bytes, and so do rows of 16 × n classes
    known = range(8 if classes % 16 == 0 else 6)
    source = ASTSource(
        rows_triton._row,
        signature,
        {"SOFT": soft, "MOMENTS": moments, "STATS": stats, "WRITE": write, "BLOCK": block, "ONE": one},
        {(argument,): [["tt.divisibility", 16]] for argument in known},
    )
    options = {"num_warps": rows_triton.warps(block)}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_times(capability, dtype):
    signature = {"values": f"*{dtype}", "factor": "*fp32", "size": "i32", "BLOCK": "constexpr"}
    source = ASTSource(rows_triton._times, signature, {"BLOCK": 4096})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def usage(kernel):
    """(registers, bytes of stack, bytes of shared memory)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        result = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return tuple(int(re.search(rf"{name}:(\d+)", result.stdout)[1]) for name in ("REG", "STACK", "SHARED"))


def main():
    for capability, dtype in product(CAPABILITIES, DTYPES):
        for classes, soft, (stats, write) in product(CLASSES, (False, True), ((True, False), (True, True), (False, True))):
            found = usage(compile_row(capability, dtype, classes, soft, stats, write))
            what = " soft" * soft + " statistics" * stats + " gradient" * write
            print(capability, dtype, f"K={classes}{what}", *found, flush=True)
        print(capability, dtype, "times", *usage(compile_times(capability, dtype)), flush=True)


if __name__ == "__main__":
    main()
