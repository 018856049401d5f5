"""Make the support matrix: train every head of the installed transformers for one step with two losses.

    python -m tests.support [--only REGEX] [--jobs 2]      # about five minutes on 2 cores

Writes tests/support/matrix.json and a readable matrix.md. Exits with 1 if any outcome is a defect: `differs`, `timeout`, or
an `error` that this library does not raise.
"""

import argparse
import json
import multiprocessing
import re
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.support.build import head_classes
from tests.support.outcome import outcome

MATRIX = Path(__file__).with_name("matrix.json")
OUTCOMES = {
    "equal": "trains with maxsup; with cross_entropy its loss and gradients are the model's own to 1e-6 relative; cut into "
    "micro-batches of one row the gradient of maxsup is that of the whole batch to 1e-6, unless the row says otherwise",
    "refused": "our error with the reason, before anything is trained",
    "no training": "transformers itself has no loss for this head: its forward refuses labels or returns none",
    "no batch": "a tiny model was built, but its own forward does not take our batch: not tried",
    "not built": "no tiny model could be made from the default config, or a package that it needs is missing: not tried",
}
DEFECTS = ("differs", "error", "timeout")
# One fork at a time: filelock does not allow two at once, and a child must not inherit the end of another's pipe.
FORKING = threading.Lock()


def _in_child(cls: type[PreTrainedModel], pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipe.send(outcome(cls))


def isolated(cls: type[PreTrainedModel]) -> dict[str, Any]:
    """`outcome` in a process of its own, so that a crash ends only that process."""
    fork = multiprocessing.get_context("fork")
    with FORKING:
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=_in_child, args=(cls, send))
        process.start()
        send.close()
    try:
        row = receive.recv() if receive.poll(180) else {"outcome": "timeout"}
    except EOFError:
        row = {"outcome": "error", "reason": "the process died"}
    process.kill()
    process.join()
    return row


def matrix(only: str = "", jobs: int = 2) -> dict[str, dict[str, Any]]:
    """Class name -> row, for all heads whose name matches."""
    import maxsup_hf.trainer.trainer  # noqa: F401  (imported once, before the children are made)

    heads = {name: cls for name, cls in sorted(head_classes().items()) if re.search(only, name)}
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(heads, pool.map(isolated, heads.values()), strict=True))


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The matrix as a Markdown page."""
    counts = Counter(row["outcome"] for row in rows.values())
    lines = [f"# Support matrix: the {len(rows)} heads of transformers {transformers.__version__}", ""]
    lines += ["Made by `python -m tests.support`.", "", "| outcome | heads | meaning |", "|---|---|---|"]
    lines += [f"| {kind} | {counts[kind]} | {meaning} |" for kind, meaning in OUTCOMES.items()]
    for kind in OUTCOMES:
        lines += ["", f"## {kind}", ""]
        for name, row in rows.items():
            if row["outcome"] == kind:
                several = f" ({row['cross_entropies']} cross-entropies)" if row.get("cross_entropies", 1) > 1 else ""
                reason = " ".join(row.get("reason", "").replace("|", "/").split())[:110]
                lines.append(f"- {name}{several}" + (f": {reason}" if reason else "") + of_the_cut(row))
    return "\n".join(lines) + "\n"


def of_the_cut(row: dict[str, Any]) -> str:
    """The note on micro-batches, if their gradient is not exact to 1e-6."""
    if row.get("cut_error", 0) > 1e-6:
        return f"; cut into rows, its gradient is {row['cut_error']:.0e} off"
    return f"; cut into rows: {row['cut_refused'].replace('|', '/')[:110]}" if "cut_refused" in row else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=MATRIX)
    args = parser.parse_args()
    rows = matrix(args.only, args.jobs)
    content = {"transformers": transformers.__version__, "heads": rows}
    args.output.write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")
    args.output.with_suffix(".md").write_text(markdown(rows))
    print(Counter(row["outcome"] for row in rows.values()))
    defects = {name: row for name, row in rows.items() if row["outcome"] in DEFECTS}
    for name, row in defects.items():
        print(name, row)
    raise SystemExit(bool(defects))


if __name__ == "__main__":
    main()
