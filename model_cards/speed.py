"""Compare the benchmark's reports with their goals, and say why a goal was missed: model_cards/results/bench_cpu.md.

    python model_cards/speed.py        # after the commands in `COMMANDS`

Times are ratios of forward plus backward, the median over interleaved rounds.
"""

from collections.abc import Iterable
from typing import Any

from store import RESULTS, read

from maxsup_hf.output.tables import Table, markdown

COMMANDS = """\
OMP_NUM_THREADS=2 maxsup-hf bench --threads 2 --rounds 5 --output model_cards/results/bench_cpu.json
S="--shapes 64x10,64x150,256x1000,2048x1000,4096x21841,1024x32000,512x128256
   --variant_shapes 64x10,65536x19,16384x150,2048x1000,1024x32000"
OMP_NUM_THREADS=2 maxsup-hf bench --threads 1 --rounds 3 $S --output model_cards/results/bench_cpu_1_of_2.json
OMP_NUM_THREADS=1 maxsup-hf bench --rounds 3 $S --output model_cards/results/bench_cpu_1.json
python model_cards/speed.py"""
REPORTS = {
    "bench_cpu": "Two threads",
    "bench_cpu_1_of_2": "One thread (`torch.set_num_threads(1)`)",
    "bench_cpu_1": "`OMP_NUM_THREADS=1`",
}
# (label, timed loss, what its time is divided by, goal for each shape, reason where a goal was missed)
GOALS: list[tuple[str, str, str, list[float], str]] = [
    ("MaxSup / label smoothing", "loss", "label smoothing", [0.60, 0.65, 0.45, 0.40, 0.32, 0.32, 0.32],
     "with the smallest batches, most of the time is the overhead of Python and autograd. Batches of a few megabytes stay "
     "in the cache, where the extra passes of label smoothing cost little, and both losses pay the same for the first touch "
     "of the gradient's memory"),
    ("MaxSup / label smoothing, both compiled", "compiled loss", "compiled label smoothing",
     [1.2, 1.2, 1.0, 1.0, 0.85, 0.85, 0.85],
     "each of the two operators in the graph is called from Python, which takes longer than a small batch, while compiled "
     "label smoothing is a single C++ function. For large batches, label smoothing saves its log-softmax for the backward "
     "pass; MaxSup saves only the logits and computes the exponentials again"),
]  # fmt: skip
# (label, loss, goal for its peak memory)
MEMORY: list[tuple[str, str, float | None]] = [
    ("MaxSup", "loss", 1.01),
    ("label smoothing", "label smoothing", None),
    ("MaxSup in plain torch operations", "naive", None),
]
LINEAR: dict[int, float] = {32000: 0.75, 128256: 0.5}  # number of classes -> goal for the fused linear loss
FOCAL = (
    "the formula and its derivative take a dozen torch operations on one value per row, which take longer than a small "
    "batch, and the logits are read twice"
)
VARIANTS: dict[str, tuple[float, str]] = {  # name in the report -> goal, reason where it was missed
    "bfloat16": (1.3, "the values are converted one row at a time, and with few classes a row is short"),
    "(N, K, …)": (1.3, "with many classes, the rows that are processed together no longer fit into the cache, and every "
                       "class lies on another memory page"),
    "focal": (1.5, FOCAL),
    "z_loss": (1.5, "as for focal"),
    "poly": (1.5, "as for focal"),
}  # fmt: skip


def text() -> str:
    parts = ["Numbers in bold meet the goal that follows them.", f"```bash\n{COMMANDS}\n```"]
    for name, title in REPORTS.items():
        report = read(RESULTS / f"{name}.json")
        machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
        parts += [f"## {title}", machine, *of_logits(report["results"]), *of_linear(report["linear_results"])]
        parts += of_variants(report["variant_results"])
    return "\n\n".join(parts) + "\n"


def of_logits(results: list[dict[str, Any]]) -> list[str]:
    times, missed = [], []
    for label, timed, base, goals, why in GOALS:
        found = [of["ratios"][timed][base] for of in results]
        times.append([label, *(cell(value, goal) for value, goal in zip(found, goals, strict=True))])
        if any(value > goal for value, goal in zip(found, goals, strict=True)):
            missed.append(f"- {label}: {why}.")
    memory = [
        [label, *(cell(of["peak_memory_over_logits"][loss], goal, digits=3) for of in results)]
        for label, loss, goal in MEMORY
    ]
    return [
        *table(results, times),
        "Peak memory, as a multiple of the logits' size:",
        *table(results, memory),
        *as_list(missed),
    ]


def of_linear(results: list[dict[str, Any]]) -> list[str]:
    if not results:
        return []
    rows, missed = [], []
    for of in results:
        name, goal = shape(of), LINEAR[of["shape"][2]]
        time, peak = of["ratios"]["unfused label smoothing"], of["peak_bytes"]
        memory = peak["fused"] / peak["unfused label smoothing"]
        rows.append([name, cell(time, goal), f"{memory:.3f}", f"{of['ignored_to_full']:.2f}"])
        if time > goal:
            products = time / of["ratios"]["three products"]
            missed.append(f"- {name}: the three matrix products alone take {products:.2f} of label smoothing's time.")
    header = ["rows × width × classes", "time", "peak memory", "time with 60 % of the rows ignored / with all rows"]
    return [
        "Fused linear loss / linear layer followed by label smoothing:",
        markdown(Table(header, rows)),
        *as_list(missed),
    ]


def of_variants(results: list[dict[str, Any]]) -> list[str]:
    rows, missed = [], []
    for name, (goal, why) in VARIANTS.items():
        found = [of["ratios"][name] for of in results]
        rows.append([name, *(cell(value, goal) for value in found)])
        if any(value > goal for value in found):
            missed.append(f"- {name}: {why}.")
    return ["Variants / MaxSup on float32 logits (N, K):", *table(results, rows), *as_list(missed)]


def table(results: list[dict[str, Any]], rows: list[list[str]]) -> list[str]:
    return [markdown(Table(["rows × classes", *map(shape, results)], rows))]


def as_list(items: Iterable[str]) -> list[str]:
    return ["\n".join(items)] if items else []


def shape(result: dict[str, Any]) -> str:
    return "×".join(map(str, result["shape"]))


def cell(value: float, goal: float | None, digits: int = 2) -> str:
    found = f"{value:.{digits}f}"
    if goal is None:
        return found
    return f"**{found}** ≤ {goal}" if value <= goal else f"{found} > {goal}"


if __name__ == "__main__":
    (RESULTS / "bench_cpu.md").write_text(text(), encoding="utf-8")
    print(text(), end="")
