"""What an experiment takes that is not there: long tails, labels that are wrong on purpose, the config of a ViT."""

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, load_dataset
from transformers import ViTConfig

from maxsup_hf.data.builtin import digits
from maxsup_hf.metrics import long_tailed_subset


def make(name: str, data: Path, folder: Path) -> None:
    """Write what an experiment `longtailRATIO`, `noisePERCENT` or `vit` takes to `folder`; others need nothing.

    The first class of a long tail keeps all its rows, a fifth of them where the name ends so.
    """
    if name.startswith("longtail"):
        train = load_dataset("parquet", data_files=str(data / "cifar10" / "train.parquet"), split="train")
        ratio = float(name.removeprefix("longtail").removesuffix("fifth"))
        rows = long_tailed_subset(train["label"], ratio, largest=1000 if name.endswith("fifth") else None)
        write(train.select(rows), folder / "train.parquet")
    elif name.startswith("noise"):
        train, test = noisy_digits(float(name.removeprefix("noise")) / 100)
        write(train, folder / "train.parquet")
        write(test, folder / "test.parquet")
    elif name == "vit":
        sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
        ViTConfig(image_size=32, patch_size=8, **sizes).save_pretrained(folder)


def noisy_digits(share: float) -> tuple[Dataset, Dataset]:
    """Half of the handwritten digits with `share` of the labels drawn anew from all classes, and the other half as it is."""
    rows = digits().shuffle(seed=0)
    train, test = rows.select(range(len(rows) // 2)), rows.select(range(len(rows) // 2, len(rows)))
    generator = np.random.default_rng(0)
    labels = np.array(train["label"])
    names = train.features["label"].names
    wrong = generator.random(len(labels)) < share  # of one seed, less noise is a part of more
    labels = np.where(wrong, generator.integers(len(names), size=len(labels)), labels)
    return train.remove_columns("label").add_column("label", labels).cast_column("label", ClassLabel(names=names)), test


def write(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(str(path))
