"""What the bench measured beside what was aimed at, and why where it fell short: model_cards/results/bench_cpu.md.

    OMP_NUM_THREADS=2 maxsup-hf bench --threads 2 --rounds 5 --output model_cards/results/bench_cpu.json
    S="--shapes 64x10,64x150,256x1000,2048x1000,4096x21841,1024x32000,512x128256
       --variant_shapes 64x10,65536x19,16384x150,2048x1000,1024x32000"
    OMP_NUM_THREADS=2 maxsup-hf bench --threads 1 --rounds 3 $S --output model_cards/results/bench_cpu_1_of_2.json
    OMP_NUM_THREADS=1 maxsup-hf bench --rounds 3 $S --output model_cards/results/bench_cpu_1.json
    python model_cards/speed.py

Times are ratios of forward and backward, the median over interleaved rounds.
"""

import json
from pathlib import Path
from textwrap import dedent

RESULTS = Path(__file__).parent / "results"
REPORTS = {
    "bench_cpu": "Two threads",
    "bench_cpu_1_of_2": "One thread (`torch.set_num_threads(1)`)",
    "bench_cpu_1": "`OMP_NUM_THREADS=1`",
}
# (what, whose ratio, to what, most for each shape, why where more was measured)
GOALS: list[tuple[str, str, str, list[float], str]] = [
    ("MaxSup, to label smoothing", "loss", "label smoothing", [0.60, 0.65, 0.45, 0.40, 0.32, 0.32, 0.32],
     "of the smallest batches most of the time is Python's and autograd's own; batches of a few megabytes stay in the "
     "cache, where label smoothing's passes cost little, and the first touch of the gradient's memory costs both the same"),
    ("MaxSup, to label smoothing, both compiled", "compiled loss", "compiled label smoothing",
     [1.2, 1.2, 1.0, 1.0, 0.85, 0.85, 0.85],
     "each of the two operators in the graph is called from Python, which takes longer than a small batch, where compiled "
     "label smoothing is one function in C++; of large ones label smoothing keeps its log-softmax for the backward, ours "
     "only the logits, and makes the exponentials again"),
]  # fmt: skip
MEMORY: list[tuple[str, str, float | None]] = [
    ("MaxSup", "loss", 1.01),
    ("label smoothing", "label smoothing", None),
    ("the plain formula", "naive", None),
]
# of the fused linear loss, for each number of classes: time to unfused label smoothing
LINEAR: dict[int, float] = {32000: 0.75, 128256: 0.5}
WHY_TIME = "three bare matrix products alone take {:.2f} of it"
VARIANTS: dict[str, tuple[float, str]] = {
    "bfloat16": (1.3, "the numbers are converted one row at a time, and with few classes a row is short"),
    "(N, K, …)": (1.3, "with many classes the rows that are worked on at once no longer fit into the cache, and every class "
                       "is in another page of memory"),
    "focal": (1.5, "the formula and its derivative are a dozen torch operations on one value a row, which takes longer than "
                   "a small batch, and the logits are read twice"),
    "z_loss": (1.5, "as focal"),
    "poly": (1.5, "as focal"),
}  # fmt: skip


def cell(value: float, most: float | None, digits: int = 2) -> str:
    text = f"{value:.{digits}f}"
    return text if most is None else f"**{text}** ≤ {most}" if value <= most else f"{text} > {most}"


def text() -> str:
    """Bold is what was reached; the number after it is the goal."""
    commands = dedent((__doc__ or "").split("\n\n")[1])
    parts = [text.__doc__ or "", "", "```bash", commands, "```", ""]
    for name, title in REPORTS.items():
        report = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
        parts += [f"## {title}", "", machine, "", *of_logits(report), "", *of_linear(report), *of_variants(report), ""]
    return "\n".join(parts).rstrip() + "\n"


def of_logits(report: dict) -> list[str]:
    of = report["results"]
    header = "| rows × classes | " + " | ".join("{}×{}".format(*r["shape"]) for r in of) + " |"
    head, missed = [header, "|---" + "|---:" * len(of) + "|"], []
    lines = list(head)
    for what, mine, other, most, why in GOALS:
        found = [r["ratios"][mine][other] for r in of]
        lines.append(row(what, [cell(value, m) for value, m in zip(found, most, strict=True)]))
        if any(value > m for value, m in zip(found, most, strict=True)):
            missed.append(f"- {what}: {why}.")
    lines += ["", "Peak memory over that of the logits:", "", *head]
    for what, mine, limit in MEMORY:
        lines.append(row(what, [cell(r["peak_memory_over_logits"][mine], limit, 3) for r in of]))
    return [*lines, *([""] if missed else []), *missed]


def of_linear(report: dict) -> list[str]:
    if not report["linear_results"]:
        return []
    lines = ["Fused linear loss, to label smoothing of logits that are made whole:", ""]
    lines += ["| rows × width × classes | time | peak memory | with 60 % of rows ignored, to all |", "|---|---:|---:|---:|"]
    missed = []
    for found in report["linear_results"]:
        name, most = "{}×{}×{}".format(*found["shape"]), LINEAR[found["shape"][2]]
        spent = found["ratios"]["unfused label smoothing"]
        memory = found["peak_bytes"]["fused"] / found["peak_bytes"]["unfused label smoothing"]
        lines.append(row(name, [cell(spent, most), f"{memory:.3f}", f"{found['ignored_to_full']:.2f}"]))
        if spent > most:
            missed.append(f"- {name}: {WHY_TIME.format(spent / found['ratios']['three products'])}.")
    return [*lines, *([""] if missed else []), *missed, ""]


def of_variants(report: dict) -> list[str]:
    of = report["variant_results"]
    lines = ["To MaxSup on rows of float32:", ""]
    lines += ["| rows × classes | " + " | ".join("{}×{}".format(*r["shape"]) for r in of) + " |"]
    lines += ["|---" + "|---:" * len(of) + "|"]
    missed = []
    for name, (most, why) in VARIANTS.items():
        lines.append(row(name, [cell(r["ratios"][name], most) for r in of]))
        if any(r["ratios"][name] > most for r in of):
            missed.append(f"- {name}: {why}.")
    return [*lines, *([""] if missed else []), *missed]


def row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    (RESULTS / "bench_cpu.md").write_text(text(), encoding="utf-8")
    print(text(), end="")
