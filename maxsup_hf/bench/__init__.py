"""Time and memory of a loss, forward and backward, compared with similar losses, on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maxsup_hf.bench import linear, logits, variants
from maxsup_hf.bench.timing import machine
from maxsup_hf.losses import create_loss, list_losses
from maxsup_hf.output.files import write_json
from maxsup_hf.output.parser import Parser

SHAPES = "64x10,64x150,256x1000,2048x1000,4096x21841,1024x32000,512x128256"
VARIANT_SHAPES = "64x10,65536x19,16384x150,2048x1000,1024x32000"
LINEAR_SHAPES = "2048x512x32000,2048x512x128256"


def parser() -> Parser:
    """The command line of `maxsup-hf bench`."""
    description = (__doc__ or "").partition("\n")[0]
    found = Parser(prog="maxsup-hf bench", usage="%(prog)s [flags]", description=description)
    found.add_argument("--loss", default="maxsup", choices=list_losses(), metavar="LOSS", help="a registered loss (maxsup)")
    found.add_argument("--shapes", type=_shapes, metavar="NxK,…", help=f"rows x classes of logits ({SHAPES})")
    found.add_argument(
        "--linear_shapes", type=_linear_shapes, metavar="NxDxV,…",
        help=f"rows x width x classes of the fused linear loss ({LINEAR_SHAPES})",
    )  # fmt: skip
    found.add_argument(
        "--variant_shapes", type=_shapes, metavar="NxK,…",
        help=f"rows x classes for other dtypes, layouts and losses ({VARIANT_SHAPES}); if any of the three kinds of shapes "
        "is given, only the given ones are measured",
    )  # fmt: skip
    found.add_argument("--dtypes", type=_dtypes, default="float32", metavar="DTYPE,…", help="dtypes of the logits (float32)")
    found.add_argument("--rounds", type=_positive, default=15, help="how often each candidate is timed (15)")
    found.add_argument("--device", type=_device, default="cpu", help="cpu or cuda (cpu)")
    found.add_argument("--threads", type=_positive, help="number of torch threads on the CPU (torch's default)")
    found.add_argument("--output", type=Path, metavar="FILE.json", help="also write the results to this file")
    found.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also time torch.compile")
    return found


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here: {error}") from None


def _shapes(text: str) -> list[Any]:
    return _parse_shapes(text, 2, "rows x classes as 64x10,256x1000")


def _linear_shapes(text: str) -> list[Any]:
    return _parse_shapes(text, 3, "rows x width x classes as 2048x512x32000")


def _parse_shapes(text: str, count: int, expected: str) -> list[Any]:
    """Comma-separated shapes of `count` sizes each."""
    try:
        found = [tuple(map(int, part.split("x"))) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(len(shape) == count and min(shape) > 0 and shape[-1] > 1 for shape in found):
        raise argparse.ArgumentTypeError(f"expected {expected}, with at least 2 classes, got {text!r}")
    return found


def _dtypes(text: str) -> list[torch.dtype]:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"expected comma-separated names out of {', '.join(known)}, got {name!r}")
    return [known[name] for name in text.split(",")]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point of `maxsup-hf bench`: prints tables, writes JSON with `--output`, and returns the report."""
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device, loss = args.device, create_loss(args.loss)
    if args.linear_shapes:
        loss.require_row_statistics("fused_linear_loss")
    shapes, linear_shapes, variant_shapes = args.shapes or [], args.linear_shapes or [], args.variant_shapes or []
    if not (shapes or linear_shapes or variant_shapes):
        shapes, variant_shapes = _shapes(SHAPES), _shapes(VARIANT_SHAPES)
        linear_shapes = [] if loss.spec.needs_logits else _linear_shapes(LINEAR_SHAPES)
    report: dict[str, Any] = {
        "loss": args.loss,
        "parameters": loss.values(0.0),
        "rounds": args.rounds,
        "machine": machine(device),
        "results": [],
        "linear_results": [],
        "variant_results": [],
    }
    for shape in shapes:
        for dtype in args.dtypes:
            report["results"].append(logits.measure(loss, shape, dtype, device, args.rounds, args.compile))
            print(logits.table(report["results"][-1:]), flush=True)
    for shape in linear_shapes:
        for dtype in args.dtypes:
            report["linear_results"].append(linear.measure(loss, shape, dtype, device, args.rounds))
            print(linear.table(report["linear_results"][-1:]), flush=True)
    for shape in variant_shapes:
        report["variant_results"].append(variants.measure(loss, shape, device, args.rounds))
        print(variants.table(report["variant_results"][-1:]), flush=True)
    print(summary(report))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, report)
    return report


def summary(report: dict[str, Any]) -> str:
    """A report as Markdown."""
    kinds = {"results": logits.table, "linear_results": linear.table, "variant_results": variants.table}
    tables = [table(report[kind]) for kind, table in kinds.items() if report[kind]]
    tables.append(", ".join(f"{key}: {value}" for key, value in report["machine"].items()))
    return "".join(f"\n{part}\n" for part in tables)
