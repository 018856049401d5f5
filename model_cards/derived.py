"""Make the data sets and networks that some experiments need: long tails, noisy labels, chats, a small ViT, our networks."""

from pathlib import Path

import chats
import numpy as np
from datasets import ClassLabel, Dataset, load_dataset
from networks import write_network
from transformers import ViTConfig

from maxsup_hf.data.builtin import digits
from maxsup_hf.metrics import long_tailed_subset

# name of an experiment -> its network, see networks.py
NETWORKS = {
    "cifar10_resnet20": "resnet20",
    "alphas_resnet20": "resnet20",
    "longtail50_resnet32": "resnet32",
    "longtail100_resnet32": "resnet32",
    "cifar10_finetuned": "efficientnet_lite0",
}


def make(name: str, data: Path, folder: Path) -> None:
    """Write the files that an experiment needs to `folder`: data of `longtailRATIO…` and `noisePERCENT`, and networks.

    The most frequent class of a long tail keeps all its rows, or a fifth of them if the name ends in `fifth`.
    """
    if name in NETWORKS:
        write_network(NETWORKS[name], folder / "network")
    if name.startswith("longtail"):
        train = load_dataset("parquet", data_files=str(data / "cifar10" / "train.parquet"), split="train")
        ratio = float(name.removeprefix("longtail").removesuffix("fifth").removesuffix("_resnet32"))
        rows = long_tailed_subset(train["label"], ratio, largest=1000 if name.endswith("fifth") else None)
        write(train.select(rows), folder / "train.parquet")
    elif name.startswith("noise"):
        train, test = noisy_digits(float(name.removeprefix("noise")) / 100)
        write(train, folder / "train.parquet")
        write(test, folder / "test.parquet")
    elif name == "sft_chats":
        chats.make(data, folder)
    elif name == "vit":
        sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
        ViTConfig(image_size=32, patch_size=8, **sizes).save_pretrained(folder)


def noisy_digits(share: float) -> tuple[Dataset, Dataset]:
    """Half of the handwritten digits with a `share` of the labels redrawn from all classes, and the other half unchanged."""
    rows = digits().shuffle(seed=0)
    train, test = rows.select(range(len(rows) // 2)), rows.select(range(len(rows) // 2, len(rows)))
    generator = np.random.default_rng(0)
    labels = np.array(train["label"])
    names = train.features["label"].names
    wrong = (
        generator.random(len(labels)) < share
    )  # same seed: rows that are noisy at a small share are noisy at a larger one
    labels = np.where(wrong, generator.integers(len(names), size=len(labels)), labels)
    return train.remove_columns("label").add_column("label", labels).cast_column("label", ClassLabel(names=names)), test


def write(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(str(path))
