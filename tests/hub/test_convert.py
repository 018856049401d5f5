"""Conversion of random weights in the authors' layouts, compared with the source architectures written out in torch."""

import argparse
import io
import math
import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from maxsup_hf.hub.card import card_for_repository
from maxsup_hf.hub.convert import convert, imagenet_labels, main, read_checkpoint
from maxsup_hf.hub.source_weights import ENTRIES
from tests.hub.authors_networks import random


def without_counters(weights):
    return {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def prefixed(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


ARGS = argparse.Namespace(model="resnet50", output_dir="out", lr=0.1, distributed=True)
# As each of the authors' programs saves them.
SAVED = {
    # Deit/main.py and Conv/common_resnet/train.py; the average of the latter counts its updates
    "args": lambda weights: {
        "model": weights,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 90,
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.", {k: v * 0 for k, v in weights.items()})},
        "args": ARGS,
    },
    # Conv/ffcv: Lightning, compiled; online label smoothing keeps its matrix in the state
    "lightning": lambda weights: {
        "state_dict": {**prefixed("model._orig_mod.", weights), "criterion.supervise": torch.zeros(10, 10)},
        "epoch": 90,
        "hyper_parameters": {},
    },
    # viz/logits.py: a bare state dict of DistributedDataParallel
    "bare": lambda weights: prefixed("module.", without_counters(weights)),
}


@pytest.mark.parametrize(
    "architecture, blur, saved",
    [
        ("resnet50", False, "args"),
        ("deit_small", False, "args"),
        ("resnet50", True, "lightning"),
        ("resnet50", False, "bare"),
    ],
)
def test_a_checkpoint_of_the_authors_becomes_a_pipeline(architecture, blur, saved, tmp_path, monkeypatch, capsys):
    source = random(architecture, **({"blur": True} if blur else {}))
    torch.save(SAVED[saved](source.state_dict()), tmp_path / "weights.pt")
    main([str(tmp_path / "weights.pt"), str(tmp_path / "out"), "--architecture", architecture])
    said = capsys.readouterr().out
    assert "saved to" in said and ("for model_ema, use --entry" in said) == (saved == "args")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out", trust_remote_code=blur).eval()
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, source(pixels), rtol=1e-5, atol=1e-5)
    labels = model.config.id2label
    assert (labels[0], labels[999], len(set(labels.values()))) == ("tench", "toilet paper", 1000)
    code = ["blurpool_resnet.py"] if blur else []
    written = ["README.md", *code, "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written

    # the card's snippet, against the preparation of the authors' evaluation written out
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.jpg")
    card = (tmp_path / "out" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert 'Image.new("RGB", (224, 224), "white")' in code
    names = {}
    exec(code.replace('Image.new("RGB", (224, 224), "white")', 'Image.open("photo.jpg")'), names)
    printed = capsys.readouterr().out.splitlines()
    answers = names["classify"](Image.open("photo.jpg"), top_k=3)
    assert printed == [f"{answer['score']:.2f} {answer['label']}" for answer in answers]
    with torch.no_grad():
        probability, index = source(prepared(Image.open("photo.jpg"), architecture, blur)).softmax(-1).topk(3)
    assert [answer["label"] for answer in answers] == [labels[i] for i in index[0].tolist()]
    assert [answer["score"] for answer in answers] == pytest.approx(probability[0].tolist(), rel=1e-3)
    card_for_repository(tmp_path / "out", "me/converted")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'model="me/converted"' in card and '"out"' not in card and "full path of the folder" not in card


def prepared(image, architecture, blur):
    """Resize the shorter edge, crop the center, normalise: `Resize(256)`, or the crop of 7/8 to 256 pixels of Conv/ffcv."""
    shorter, size = (293, 256) if blur else (256, 224)
    width, height = image.size
    scale = shorter / min(width, height)
    how = Image.Resampling.BICUBIC if architecture == "deit_small" else Image.Resampling.BILINEAR
    image = image.resize((int(width * scale), int(height * scale)), how)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / deviation[:, None, None])[None]


@pytest.mark.parametrize(("architecture", "blur"), [("resnet18", False), ("resnet18", True), ("resnet101", False)])
def test_other_architectures(architecture, blur):
    source = random(architecture, 5, blur=blur)
    model = convert(source.state_dict(), architecture)
    pixels = torch.randn(1, 3, 63, 65)  # odd sizes: the borders of a strided convolution differ from side to side
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, source(pixels), rtol=1e-5, atol=1e-5)


def test_blurpool_is_not_loaded_without_its_code(tmp_path):
    weights = random("resnet18", 5, blur=True).state_dict()
    convert(weights, "resnet18").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=False)
    del weights["layer2.0.conv1.blur_filter"], weights["layer3.0.conv1.blur_filter"]
    weights = {name.replace("layer2.0.conv1.conv.", "layer2.0.conv1."): value for name, value in weights.items()}
    with pytest.raises(ValueError, match="unknown: layer3.0.conv1.conv.weight|unknown: .*layers.0.layer.0.convolution.conv"):
        convert(weights, "resnet18")
    weights = {name.replace("layer3.0.conv1.conv.", "layer3.0.conv1."): value for name, value in weights.items()}
    with pytest.raises(ValueError, match="not blurred: .*stages.1.layers.0.layer.0.convolution.weight, .*stages.2"):
        convert(weights, "resnet18")
    weights["layer4.0.conv1.blur_filter"] = weights["layer4.0.conv1.blur_filter"] * 2
    with pytest.raises(ValueError, match="layer4.0.conv1.blur_filter must be the blur"):
        convert(weights, "resnet18")


def test_a_readme_is_kept(tmp_path):
    save_file(random("resnet18", 5).state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    main([str(tmp_path / "weights.safetensors"), str(tmp_path / "out"), "--architecture", "resnet18"])
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    photo = Image.new("L", (40, 30))  # smaller than the crop, and not in color
    assert processor(photo, return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module."])
def test_entries_and_prefixes(entry, prefix, tmp_path):
    torch.save({entry: prefixed(prefix, {"head.bias": torch.ones(2)}), "args": ARGS, "epoch": 3}, tmp_path / "weights.pt")
    assert read_checkpoint(tmp_path / "weights.pt").keys() == {"head.bias"}


def test_an_entry_by_name(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"model": {"a": torch.zeros(1)}, "model_ema": {"a": torch.ones(1)}, "epoch": 3}, path)
    assert read_checkpoint(path)["a"] == 0 and read_checkpoint(path, "model_ema")["a"] == 1
    with pytest.raises(ValueError, match="entry must be one with weights in .* .model, model_ema., got 'ema'"):
        read_checkpoint(path, "ema")


def test_class_counts_and_names():
    weights = random("deit_small", 5).state_dict()
    assert convert(weights, "deit_small").config.num_labels == 5
    assert convert(weights, "deit_small", id2label=dict(enumerate("abcde"))).config.id2label[4] == "e"
    with pytest.raises(ValueError, match="id2label must name the classes 0 to 4, got 2 names"):
        convert(weights, "deit_small", id2label={0: "a", 1: "b"})
    assert imagenet_labels()[657] == "missile (657)"


def test_wrong_or_partial_weights_are_listed():
    weights = random("deit_small", 5).state_dict()
    with pytest.raises(
        ValueError, match="not a complete resnet50; missing: .*resnet.embedder.*; unknown: blocks.0.attn"
    ) as long:
        convert(weights, "resnet50", id2label=None)
    assert len(str(long.value)) < 1000
    del weights["norm.bias"]
    weights["head.extra"] = torch.zeros(1)
    weights["pos_embed"] = torch.zeros(1, 50, 384)
    message = (
        r"missing: vit.layernorm.bias; unknown: classifier.extra; "
        r"of another shape: vit.embeddings.position_embeddings \(1, 50, 384\) instead of \(1, 197, 384\)"
    )
    with pytest.raises(ValueError, match=message):
        convert(weights, "deit_small")
    with pytest.raises(ValueError, match="architecture must be one of resnet18, .*deit_small, got 'vgg'"):
        convert(weights, "vgg")


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def failed(capsys, *words):
    """The one line in which a conversion ends."""
    with pytest.raises(SystemExit) as stop:
        main([*words, "--architecture", "resnet50"])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1 and len(message) < 1000
    return message, stop.value.__cause__


@pytest.mark.parametrize("format", [True, False])
@pytest.mark.parametrize("where", ["model", "args"])
def test_a_pickle_with_code_is_refused(where, format, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = {"model": {"a": torch.zeros(1)}, "args": ARGS} | {where: Code()}
    torch.save(content, "weights.pt", _use_new_zipfile_serialization=format)
    message, error = failed(capsys, "weights.pt", "out")
    assert "(posix.system), and loading it could run code" in message or "(nt.system)" in message
    assert not (tmp_path / "ran").exists() and isinstance(error.__cause__, pickle.UnpicklingError)


def damaged():
    def saved(content, **kwargs):
        with io.BytesIO() as file:
            torch.save(content, file, **kwargs)
            return file.getvalue()

    weights = {"model": {"a": torch.zeros(1000)}}
    new, old = saved(weights), saved(weights, _use_new_zipfile_serialization=False)
    flipped = bytearray(old)
    flipped[10:60] = bytes(50)
    many = {f"{'long' * 100}{i}": torch.zeros(1) for i in range(1000)}
    return {
        "empty": (b"", "is empty"),
        "truncated": (new[: len(new) // 2], "is truncated"),
        "truncated, of an old torch": (old[: len(old) // 2], "is damaged, or is not a file of torch.save"),
        "a few bytes of an old torch": (old[:40], "is damaged, or is not a file of torch.save"),
        "flipped": (bytes(flipped), "is damaged, or is not a file of torch.save"),
        "page": (b"\n<!DOCTYPE html><html><head><title>Sign in</title>" + b"x" * 5000, "is an HTML or XML page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a Git LFS pointer"),
        "noise": (bytes(range(256)) * 9, "is damaged, or is not a file of torch.save"),
        "text": (b"404: not found", "is damaged, or is not a file of torch.save"),
        "cut safetensors": (b"\x40\0\0\0\0\0\0\0{" + b"x" * 20, "is damaged, or is not a file of torch.save"),
        "no weights": (saved({"epoch": 3}), "must hold a state dict .* it holds the entries epoch"),
        "a list": (saved([torch.zeros(1)]), "must hold a state dict .* it holds a list"),
        "an empty state": (saved({"model": {}}), "must hold a state dict .* it holds no entry"),
        "zeros": (bytes(5000), "is damaged, or is not a file of torch.save"),  # torch takes it for a tar file
        "a pickle with code": (pickle.dumps(Code(), protocol=4), "is damaged, or is not a file of torch.save"),
        "NaN": (saved({"fc.weight": torch.full((1000, 2048), math.nan)}), "NaN or infinite: classifier.1.weight"),
        "other names, long and many": (
            saved(many),
            "missing: .* and 264 more; unknown: .* and 997 more",
        ),
    }


DAMAGED = damaged()


@pytest.mark.parametrize("what", DAMAGED)
def test_a_file_that_holds_no_weights_is_named_in_one_line(what, tmp_path, capsys):
    content, message = DAMAGED[what]
    (tmp_path / "weights.pt").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = failed(capsys, str(tmp_path / "weights.pt"), str(tmp_path / "out"))
    assert re.search(message, found), found
    assert "weights_only` set to `False`" not in found and not (tmp_path / "out").exists()


def test_a_missing_file_and_an_output_that_is_a_file(tmp_path, capsys):
    path = tmp_path / "weights.pt"
    assert "No such file" in failed(capsys, str(path), "out")[0]
    torch.save(random("resnet50", 5).state_dict(), path)
    assert "File exists" in failed(capsys, str(path), str(path))[0]
