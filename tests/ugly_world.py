"""A folder full of what users bring by mistake, for `test_ugly_inputs.py`: files, folders of images, models, settings."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import BertConfig, BertForSequenceClassification

from maxsup_hf.scripts.common.tokenizers import train_tokenizer
from tests.scripts.conftest import MOODS, TEXTS, image_folder, picture

BERT = {
    "vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64,
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
QUESTIONS = ["Who?", "Where?"] * 4
CONTEXTS = ["Ann is in Rome", "Bob is in Paris"] * 4
WORDS = [["Ann", "met", "Bob"], ["Bob", "left"]] * 4
TAGS = [["B-PER", "O", "B-PER"], ["B-PER", "O"]] * 4
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def write(name, content):
    """Bytes, a text, or columns as the rows of a jsonl file."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        rows = [dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True)]
        content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make():
    """Fill the current folder."""
    _texts()
    _other_tasks()
    _images()
    _models()
    _settings()


def _texts():
    good = "text,label\n" + "".join(f"{text},{mood}\n" for text, mood in zip(TEXTS, MOODS, strict=True))
    files = {
        "good.csv": good,
        "other.csv": good.replace("text", "words"),
        "semicolons.csv": good.replace(",", ";"),
        "commas.csv": "text,label\n" + "hello, you,a\n" * 8,
        "ragged.csv": "text,label\na,x\nc,y,z\n",
        "quote.csv": 'text,label\n"a,x\nb,y\n',
        "blank.csv": "\n\n\n",
        "header.csv": "text,label\n",
        "nothing.csv": "",
        "no_header.csv": "a,x\nb,y\n" * 4,
        "latin.csv": "text,label\nfrüh,a\n".encode("latin-1"),
        "utf16.csv": good.encode("utf-16"),
        "binary.csv": bytes(range(256)) * 4,
        "fake.csv.gz": good,
        "cut.csv.gz": gzip.compress(good.encode())[:40],
        "fake.parquet": "nope",
        "notes.txt": "a",
        "sheet.xlsx": b"PK\3\4",
        "null.json": "null",
        "strings.json": '["a", "b"]',
        "cut.json": '{"text": ',
        "words.jsonl": '"a"\n"b"\n',
        "cut.jsonl": "{not json\n",
        "number.jsonl": '{"text": "a", "label": "x"}\n5\n',
        "mixed.jsonl": '{"text": "a", "label": "x"}\n{"text": 1, "label": "y"}\n',
        "unlabelled.csv": "text\na\nb\n",
        "gaps.csv": "text,label\na,x\n,y\n",
        "numbers.csv": "text,label\n1,x\n2,y\n",
        "single.csv": "text,label\na,x\nb,x\n",
        "unique.csv": "text,label\na,x\nb,y\n",
        "many.csv": "a,b,label\n" + "x,y,z\nx,y,u\n" * 4,
        "padded.csv": " a,b, label\n" + "x,y,z\nx,y,u\n" * 4,
        "real.csv": "text,label\na,0.5\nb,1\n",
        "infinite.csv": "text,label\na,inf\nb,1\n",
        "unseen.csv": "text,label\na,good\nb,ugly\n",
        "ignored.jsonl": {"text": TEXTS, "label": [-100] * 8},
        "negative.jsonl": {"text": TEXTS, "label": [-1, 0] * 4},
        "missing.jsonl": {"text": TEXTS, "label": [None] * 8},
        "lists.jsonl": {"text": TEXTS, "label": [[0, 1]] * 8},
        "blank_texts.jsonl": {"text": [" "] * 8, "label": MOODS},
        "blank_labels.jsonl": {"text": TEXTS, "label": [""] * 4 + ["a"] * 4},
        "nested.jsonl": {"text": [{"a": "b"}] * 8, "label": MOODS},
    }
    for name, content in files.items():
        write(name, content)
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), "empty.parquet")
    os.symlink("nowhere.csv", "dead.csv")
    os.symlink("loop.csv", "loop.csv")
    os.mkdir("folder.csv")
    os.mkdir("empty")
    write("broken_saved/state.json", "{")


def _other_tasks():
    write("broken_record/run.json", "{")
    write("other_record/run.json", "{}")
    write("short_tags.jsonl", {"tokens": WORDS, "tags": [tags[:1] for tags in TAGS]})
    write("tags.jsonl", {"tokens": WORDS, "tags": TAGS})
    write("other_tags.jsonl", {"tokens": [["Ann"]], "tags": [["B-ORG"]]})
    write("ignored_tags.jsonl", {"tokens": WORDS, "tags": [[-100] * len(tags) for tags in TAGS]})
    write("missing_tags.jsonl", {"tokens": WORDS, "tags": [[None] * len(tags) for tags in TAGS]})
    write("no_words.jsonl", {"tokens": [*WORDS, []], "tags": [*TAGS, []]})
    write("one_column.conll", "EU B-ORG\nrejects\n")
    write("counted.conll", "1\tAnna\tB\n2\tsings\tO\n\n1\tBob\tB\n")
    write("blank.conll", "\n\n")

    asked = {"question": QUESTIONS, "context": CONTEXTS}
    write("questions.jsonl", {**asked, "answers": ["Ann", "Paris"] * 4})
    write("no_answers.jsonl", asked)
    write("unanswered.jsonl", {**asked, "answers": [""] * 8})
    write("wrong_answers.jsonl", {**asked, "answers": ["Ann", "Berlin"] * 4})
    write("one_context.jsonl", {"question": QUESTIONS, "context": ["Ann is in Paris"] * 8, "answers": ["Ann"] * 8})
    write("blank_context.jsonl", {"question": QUESTIONS, "context": ["Ann", " "] * 4, "answers": [""] * 8})
    paragraph = {"context": "x", "qas": [{"question": "a", "answers": [{"text": "x"}]}]}
    write("no_articles.json", '{"data": []}')
    write("no_paragraphs.json", '{"data": [{"paragraphs": []}]}')
    write("squad.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))

    choices = {"question": QUESTIONS, "choices": [["a", "b"]] * 8}
    write("choices.jsonl", {**choices, "label": [0, 1] * 4})
    write("ignored_choices.jsonl", {**choices, "label": [-100] * 8})
    write("uneven_choices.jsonl", {**choices, "choices": [["a", "b"], ["a", "b", "c"]] * 4, "label": [0] * 8})
    write("three_choices.jsonl", {"question": ["x"], "choices": [["a", "b", "c"]], "label": [0]})
    write("letters.jsonl", {**choices, "answerKey": ["Z"] * 8})
    options = [["a", "b"]] * 8
    write("no_article.jsonl", {"article": [None] * 8, "question": QUESTIONS, "options": options, "answer": ["A"] * 8})

    write("pairs.jsonl", {"source": TEXTS, "target": MOODS})
    write("blank_targets.jsonl", {"source": TEXTS, "target": [""] * 8})
    write("short.txt", "hi")
    write("long.txt", "the quick brown fox " * 100)
    write("nothing.txt", "")

    write("chat.jsonl", {"messages": [[USER, ASSISTANT]] * 8})
    write("no_role.jsonl", {"messages": [[{"content": "a"}]] * 8})
    write("no_turns.jsonl", {"messages": [[]] * 8})
    write("no_chat.jsonl", {"messages": ["hi"] * 8})
    write("martians.jsonl", {"conversations": [[{"from": "martian", "value": "a"}]] * 8})
    write("no_conversation.jsonl", {"conversations": ["a"] * 8})
    write("half_a_chat.jsonl", {"prompt": ["a"] * 8, "completion": [[ASSISTANT]] * 8})
    write("no_output.jsonl", {"instruction": ["a"] * 8, "output": [None] * 8})


def _images():
    image_folder(Path("photos"), count=3)
    for name in ("cut_photo", "text_photo", "deep_photo", "dead_photo", "svg_class", "empty_class"):
        shutil.copytree("photos", name)
    photo = Path("cut_photo/cat/1.png")
    photo.write_bytes(photo.read_bytes()[:60])
    Path("text_photo/cat/1.png").write_text("not an image")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("deep_photo/cat/1.png")
    os.symlink("nowhere.png", "dead_photo/cat/9.png")
    shutil.copytree("photos", "dead_class")
    os.symlink("/nowhere", "dead_class/bird")
    write("svg_class/bird/a.svg", "<svg/>")
    os.mkdir("empty_class/bird")
    image_folder(Path("one_class"), names=("cat",), count=3)
    for split in ("train", "test"):
        shutil.copytree("photos", f"splits/{split}")
    os.mkdir("flat")
    picture(0).save("flat/a.png")
    write("no_paths.csv", "image,label\n" + "no.png,a\nnope.png,b\n" * 4)
    write("no_images.csv", "image,label\n" + "1,a\n2,b\n" * 4)
    pq.write_table(pa.table({"image": [b"junk"] * 8, "label": MOODS}), "junk.parquet")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": None}] * 8, "label": MOODS}), "no_bytes.parquet")

    for i in range(3):
        for kind in ("images", "masks"):
            Path("scenes", kind).mkdir(parents=True, exist_ok=True)
        picture(i, 16).save(f"scenes/images/{i}.png")
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 3).save(f"scenes/masks/{i}.png")
    for name in ("no_mask", "colour_mask", "small_mask", "cut_mask"):
        shutil.copytree("scenes", name)
    os.remove("no_mask/masks/1.png")
    picture(0, 16).save("colour_mask/masks/1.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("small_mask/masks/1.png")
    Path("cut_mask/masks/1.png").write_text("not an image")


def _models():
    """Configs that cannot be, a classifier of texts that can, and copies of it that are damaged."""
    config = {"model_type": "bert", **BERT}
    changes = {
        "bert": {}, "vit": {}, "no_width": {"hidden_size": 0}, "width_in_words": {"hidden_size": "big"},
        "no_activation": {"hidden_act": "nope"}, "few_tokens": {"vocab_size": 5}, "no_room": {"max_position_embeddings": 2},
        "no_such_type": {"model_type": "nope"}, "uneven_heads": {"num_attention_heads": 3},
    }  # fmt: skip
    for name, change in changes.items():
        write(f"{name}/config.json", json.dumps(VIT if name == "vit" else {**config, **change}))
    write("cut_config/config.json", "{")
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BERT, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}))
    model.save_pretrained("no_tokenizer")
    shutil.copytree("no_tokenizer", "model")
    train_tokenizer(TEXTS, 300).save_pretrained("model")
    for name in ("cut_weights", "no_weights"):
        shutil.copytree("model", name)
    os.truncate("cut_weights/model.safetensors", 2000)
    os.remove("no_weights/model.safetensors")
    adapter = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "no/base"}
    write("adapter/adapter_config.json", json.dumps(adapter))
    write("homeless/adapter_config.json", json.dumps({**adapter, "base_model_name_or_path": None}))


def _settings():
    settings = {
        "typo": "learning_rat: 1", "words": "num_train_epochs: three", "list": "- a", "bracket": "a: [1", "nothing": "",
        "part": "max_train_samples: 2.5", "kwargs": "loss_kwargs: 5", "tab": "loss:\n\tmaxsup",
        "deep": "trainer:\n  seed: 1",
    }  # fmt: skip
    for name, content in settings.items():
        write(f"{name}.yaml", content)
    write("binary.yaml", b"\xff\xfe\0")
    write("used/model.safetensors", "precious")
