"""What a reader of the documentation has: photos, texts, and models on the Hub."""

import shutil

from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizerFast, ViTImageProcessorPil

from tests import tiny
from tests.hub.server import Repo

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANIMALS = ["cat", "dog", "wolf"]


def write_files(folder):
    """`photos/`, a folder for each class; texts in `train.parquet`, `validation.parquet`, `test.parquet` and, without
    labels, in `new.csv`; and `chats.jsonl`."""
    for animal in ANIMALS:
        (folder / "photos" / animal).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (20 * i, 9, 99)).save(folder / "photos" / animal / f"{i}.png")
    texts = [f"word{i % 7} {animal}" for i in range(24) for animal in ANIMALS]
    table = Dataset.from_dict({"text": texts, "label": ANIMALS * 24})
    for split in ("train", "validation", "test"):
        table.to_parquet(folder / f"{split}.parquet")
    table.remove_columns("label").to_csv(folder / "new.csv")
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in texts]
    Dataset.from_dict({"messages": chats}).to_json(folder / "chats.jsonl")


def fill_hub(hub, folder):
    """A small text encoder and a classifier of pets, under names that the documentation uses, and somebody else's model with
    an open pull request."""
    of_texts, of_pets = folder / "of-texts", folder / "of-pets"
    tiny.bert().save_pretrained(of_texts)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    BertTokenizerFast(tokenizer_object=words).save_pretrained(of_texts)
    names = dict(enumerate(ANIMALS))
    tiny.vit(num_labels=3, id2label=names, label2id={n: i for i, n in names.items()}).save_pretrained(of_pets)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(of_pets)
    of_images = ("google/vit-base-patch16-224-in21k", "me/pets")
    for name, source in (("sentence-transformers/all-MiniLM-L6-v2", of_texts), *((name, of_pets) for name in of_images)):
        repo = hub.repos[name] = Repo(private=False)
        hub.commit(repo, "main", "made", {path.name: path.read_bytes() for path in source.iterdir()})
    theirs = hub.repos["them/digits"] = Repo(private=False, authors={"refs/pr/3": "me"})
    for branch in ("main", "refs/pr/3"):
        hub.commit(theirs, branch, "made", {})
    for used in (of_texts, of_pets):
        shutil.rmtree(used)
