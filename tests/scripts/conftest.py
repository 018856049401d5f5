"""Every test runs in its own folder, with its own cache of loaded files; the Hub is out of reach."""

import json

import datasets
import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image
from transformers import __version__ as transformers_version
from transformers.utils import is_torchvision_available

NO_SEGFORMER = Version(transformers_version) < Version("5.21") and not is_torchvision_available()
NEEDS_TORCHVISION = "SegFormer's image processor needs torchvision before transformers 5.21"

# The models are tiny: threads gain nothing, and wait ten times as long for each other where another program is running.
torch.set_num_threads(1)

TEXTS = ["good day", "good night", "very good", "so good", "bad day", "bad night", "very bad", "so bad"]
MOODS = ["good"] * 4 + ["bad"] * 4


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write(name, rows):
    """A table (column -> values) as csv, tsv, json, jsonl or parquet, by its extension."""
    table = datasets.Dataset.from_dict(rows) if isinstance(rows, dict) else rows
    extension = name.rpartition(".")[2]
    if extension == "parquet":
        table.to_parquet(name)
    elif extension in ("csv", "tsv"):
        table.to_csv(name, index=False, sep="," if extension == "csv" else "\t")
    else:
        table.to_json(name, lines=extension == "jsonl")
    return name


def texts(name="train.csv", labels=MOODS, texts=TEXTS, text="text", label="label"):
    return write(name, {text: list(texts), label: list(labels)})


def picture(seed, size=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def image_folder(root, names=("cat", "dog"), count=6):
    for c, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(count):
            picture(100 * c + i).save(folder / f"{i}.png")
    return str(root)


def results(folder):
    with open(f"{folder}/all_results.json", encoding="utf-8") as file:
        return json.load(file)
