"""What the bench measured beside what was aimed at, and why where it fell short: model_cards/results/bench_cpu.md.

    OMP_NUM_THREADS=2 maxsup-hf bench --threads 2 --rounds 9 --output model_cards/results/bench_cpu.json
    python model_cards/speed.py

Times are ratios to F.cross_entropy(label_smoothing=0.1), forward and backward, the median over interleaved rounds.
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
# (what, whose ratio, to what, most for each shape, why where more was measured)
GOALS: list[tuple[str, str, str, list[float | None], str]] = [
    ("MaxSup", "loss", "label smoothing", [0.65, 1.0, 1.0, 0.55, 0.43, 0.43],
     "of small batches most of the time is Python's and autograd's own, which label smoothing, all in C++, does not pay"),
    ("MaxSup, in place of the logits", "loss in place", "label smoothing", [None, 0.85, 0.77, 0.26, 0.20, 0.22],
     "the same, and that cache holds both the logits and the gradient of batches this small"),
    ("MaxSup under torch.compile, to compiled label smoothing", "compiled loss", "compiled label smoothing",
     [1.0, 0.85, 0.80, 0.80, 0.80, 0.80],
     "label smoothing keeps its log-softmax for the backward; ours keeps only the logits, computes the exponentials again, "
     "and looks for the top's column, which label smoothing need not"),
]  # fmt: skip
MEMORY: list[tuple[str, str, float | None]] = [
    ("MaxSup", "loss", 1.01),
    ("MaxSup, in place of the logits", "loss in place", 0.01),
    ("label smoothing", "label smoothing", None),
    ("the plain formula", "naive", None),
]
# of the fused linear loss, for each number of classes: time and memory to unfused label smoothing, 60 % ignored to all
LINEAR: dict[int, tuple[float, float, float]] = {32000: (0.74, 0.085, 0.45), 128256: (0.55, 0.13, 0.45)}
WHY_TIME = "three bare matrix products alone take {:.2f} of it"
WHY_MEMORY = "the gradients of hidden states and weight alone are {:.3f} of it"


def cell(value: float, most: float | None, digits: int = 2) -> str:
    text = f"{value:.{digits}f}"
    return text if most is None else f"**{text}** ≤ {most}" if value <= most else f"{text} > {most}"


def text() -> str:
    """Bold is what was reached; the number after it is the goal."""
    report = json.loads((RESULTS / "bench_cpu.json").read_text(encoding="utf-8"))
    of = report["results"]
    lines = [", ".join(f"{key} {value}" for key, value in report["machine"].items()), "", text.__doc__ or "", ""]
    header = "| rows × classes | " + " | ".join("{}×{}".format(*r["shape"]) for r in of) + " |"
    lines += [header, "|---" + "|---:" * len(of) + "|"]
    for what, mine, other, most, _ in GOALS:
        lines.append(row(what, [cell(r["ratios"][mine][other], m) for r, m in zip(of, most, strict=True)]))
    lines += ["", "Peak memory over that of the logits:", "", header, "|---" + "|---:" * len(of) + "|"]
    for what, mine, limit in MEMORY:
        lines.append(row(what, [cell(r["peak_memory_over_logits"][mine], limit, 3) for r in of]))
    lines += ["", "Fused linear loss, to label smoothing of logits that are made whole:", ""]
    lines += ["| rows × width × classes | time | peak memory | with 60 % of rows ignored, to all |", "|---|---:|---:|---:|"]
    short, slow = [], []
    for found in report["linear_results"]:
        name, (time, memory, ignored) = "{}×{}×{}".format(*found["shape"]), LINEAR[found["shape"][2]]
        other = found["peak_bytes"]["unfused label smoothing"]
        spent, held = found["ratios"]["unfused label smoothing"], found["peak_bytes"]["fused"] / other
        lines.append(row(name, [cell(spent, time), cell(held, memory, 3), cell(found["ignored_to_full"], ignored)]))
        if spent > time:
            short.append(f"- fused linear {name}, time: {WHY_TIME.format(spent / found['ratios']['three products'])}.")
        if held > memory:
            rows, width, classes = found["shape"]
            gradients = 4 * width * (rows + classes)
            short.append(f"- fused linear {name}, memory: {WHY_MEMORY.format(gradients / other)}.")
    for what, mine, to, most, why in GOALS:
        if any(m is not None and r["ratios"][mine][to] > m for r, m in zip(of, most, strict=True)):
            slow.append(f"- {what}: {why}.")
    return "\n".join([*lines, "", "Where it fell short:", "", *slow, *short]) + "\n"


def row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    (RESULTS / "bench_cpu.md").write_text(text(), encoding="utf-8")
    print(text(), end="")
