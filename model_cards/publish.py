"""Train a model, analyze it, write its card, and optionally push it to the Hub, by its name.

    python model_cards/publish.py digits-maxsup                               # needs no data
    python model_cards/publish.py cifar10-maxsup --data DATA --push me/cifar10-maxsup

The card and its figures are copied to model_cards/NAME. Beside the results of the model, the card shows those of the
comparison in model_cards/results that trained the same network with other losses. A model of `OF_COMPARISON` is a run of
that comparison itself: run experiments.py with its name first. DATA is the folder described in experiments.py. Finished
steps are stored in the folder `runs`, and a second call continues with the next one. Other flags are passed on to the
training.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from datasets import Dataset
from experiments import MINILM, portable, training
from PIL import Image
from store import RESULTS, read

from maxsup_hf.data.builtin import digits

SHOWN = ("accuracy", "nll", "ece", "confidence_when_wrong", "feature_within", "feature_r2")

# Name -> the experiment of which it is the first MaxSup run with weights.
OF_COMPARISON = {"cifar10-maxsup": "cifar10_resnet20", "clinc150-maxsup": "clinc150_minilm"}
# Name -> flags of `maxsup-hf card`, besides the example.
CARDS = {
    "digits-maxsup": ["--comparison", str(RESULTS / "noise0.json")],
    "cifar10-maxsup": [
        "--dataset", "uoft-cs/cifar10", "--trust_remote_code", "--comparison", str(RESULTS / "cifar10_resnet20.json"),
    ],
    "clinc150-maxsup": [
        "--dataset", "clinc/clinc_oos", "--base_model", "sentence-transformers/all-MiniLM-L6-v2", "--language", "en",
        "--comparison", str(RESULTS / "clinc150_minilm.json"),
    ],
}  # fmt: skip


def models(data: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Name -> arguments of `maxsup-hf train`, and flags of `maxsup-hf analyze`."""
    return {
        "digits-maxsup": (["image-classification"], []),
        "cifar10-maxsup": (
            training("cifar10_resnet20", data),
            ["--dataset", f"{data}/cifar10/test.parquet", "--trust_remote_code"],
        ),
        "clinc150-maxsup": (training("clinc150_minilm", data), ["--dataset", f"{data}/clinc150/test.parquet"]),
    }


def example(name: str, data: Path, runs: Path) -> str:
    """What the card shows the model's answer to: a sentence, or the file of an image, the first one of the data."""
    if name == "clinc150-maxsup":
        return "How much money is in my account?"
    rows = digits() if name == "digits-maxsup" else Dataset.from_parquet(str(data / "cifar10" / "test.parquet"))
    path = runs / f"{name}.png"
    next(value for value in rows[0].values() if isinstance(value, Image.Image)).save(path)
    return str(path)


def of_comparison(name: str, runs: Path) -> Path:
    """The folder of the comparison's run."""
    finished = sorted((runs / OF_COMPARISON[name] / "runs").glob("maxsup-seed*/model.safetensors"))
    if not finished:
        raise SystemExit(f"error: {name} is a run of {OF_COMPARISON[name]}: run experiments.py {OF_COMPARISON[name]} first")
    return finished[0].parent


def maxsup_hf(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "maxsup_hf", *words], check=True)


def row(name: str, folder: Path) -> str:
    """The model's row of the table in README.md: its metrics on test data, or on validation data if it has no test data. A
    model that predicts every row right has no confidence when wrong."""
    results = read(folder / "all_results.json")
    cells = []
    for key in SHOWN:
        values = [results[prefix + key] for prefix in ("test_", "eval_", "") if prefix + key in results]
        cells.append(f"{values[0]:.4f}" if values else "–")
    return f"| [{name}]({name}) | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=models(Path()))
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--push", metavar="REPO", help="owner/name on the Hub")
    parser.add_argument("--cards", type=Path, default=Path(__file__).parent, help="folder of the cards")
    args, more = parser.parse_known_args()
    train, analyze = models(args.data)[args.name]
    folder, analysis = args.runs / args.name, args.runs / f"{args.name}-analysis"
    if not folder.exists() and args.name in OF_COMPARISON:
        shutil.copytree(of_comparison(args.name, args.runs), folder)
    elif not (folder / "run.json").exists():
        maxsup_hf("train", *train, "--loss", "maxsup", "--save_strategy", "no", "--log_feature_geometry", "true",
                  "--output_dir", str(folder), *more)  # fmt: skip
    if not analysis.exists():
        maxsup_hf("analyze", str(folder), *analyze, "--output_dir", str(analysis))
    (folder / "figures").mkdir(exist_ok=True)
    for figure in (analysis / "figures").glob("*.png"):  # a figure of one model ends in that model's name
        shutil.copy(figure, folder / "figures" / f"{figure.stem.removesuffix(f'-1-{args.name}')}.png")
    shown = example(args.name, args.data, args.runs)
    maxsup_hf("card", str(folder), "--license", "apache-2.0", "--example", shown, *CARDS[args.name])
    shutil.rmtree(args.cards / args.name, ignore_errors=True)
    shutil.copytree(folder / "figures", args.cards / args.name / "figures")
    if (folder / "example.png").exists():
        shutil.copy(folder / "example.png", args.cards / args.name)
    for name in ("README.md", "run.json", "all_results.json"):
        text = portable((folder / name).read_text(encoding="utf-8"), args).replace("MINILM", MINILM)
        (args.cards / args.name / name).write_text(text, encoding="utf-8")
    maxsup_hf("card", str(args.cards / args.name))  # from that run.json
    print(row(args.name, folder))
    if args.push:
        maxsup_hf("push", str(folder), args.push)


if __name__ == "__main__":
    main()
