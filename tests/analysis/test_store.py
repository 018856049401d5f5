"""The cache on disk: unchanged, complete or absent, and found again only for the same model and data."""

import os

import pyarrow as pa
import pytest
import torch

from maxsup_hf.analysis import store
from maxsup_hf.analysis.store import data_fingerprint, has_rows, load_rows, model_fingerprint, save_rows
from maxsup_hf.trainer.features import FeatureRows
from tests import tiny


def batches(count=5):
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        rows = 3 + i
        yield FeatureRows(
            torch.randn(rows, 4, generator=generator),
            torch.randn(rows, 6, generator=generator),
            torch.randint(6, (rows,), generator=generator),
        )


def joined(parts):
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize(("shard", "files"), [(2**24, 1), (1, 5), (90, 2)])
def test_rows_come_back_as_they_were(shard, files, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD", shard)
    assert not has_rows(tmp_path / "rows")
    save_rows(tmp_path / "rows", batches(), {"classifier": "head"})
    assert has_rows(tmp_path / "rows")
    found = list(load_rows(tmp_path / "rows"))
    assert len(found) == len(list((tmp_path / "rows").glob("*.safetensors"))) == files
    for one, other in zip(joined(found), joined(batches()), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype


def test_an_interrupted_extraction_leaves_nothing(tmp_path):
    def broken():
        yield from batches(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_rows(tmp_path / "rows", broken(), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["cut", "index", "gone"])
def test_damaged_rows_are_no_rows_and_are_replaced(harm, tmp_path):
    folder = tmp_path / "rows"
    save_rows(folder, batches(), {})
    (file,) = folder.glob("*.safetensors")
    if harm == "cut":
        os.truncate(file, file.stat().st_size - 10)
    else:
        (folder / "index.json" if harm == "index" else file).unlink()
    assert not has_rows(folder)
    save_rows(folder, batches(), {})
    assert has_rows(folder) and len(joined(load_rows(folder))[0]) == 25


def test_a_model_is_known_by_weights_and_config():
    model = tiny.vit()
    first = model_fingerprint(model)
    model.config._name_or_path = "elsewhere"
    assert model_fingerprint(model) == first
    other = tiny.vit()
    other.load_state_dict(model.state_dict())
    assert model_fingerprint(other) == first
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert model_fingerprint(other) != first
    assert model_fingerprint(model.bfloat16()) != first
    assert model_fingerprint(tiny.resnet()) != first
    bert = tiny.bert()
    second = model_fingerprint(bert)
    bert.config.layer_norm_eps = 1e-3
    assert model_fingerprint(bert) != second


def test_data_are_known_by_their_values(tmp_path):
    column = pa.chunked_array([["a", "b"], ["c"]])
    first = data_fingerprint([("text", column)])
    assert data_fingerprint([("text", pa.chunked_array([["a"], ["b", "c"]]))]) == first
    others = [
        data_fingerprint([("text", pa.chunked_array([["a", "b", "d"]]))]),
        data_fingerprint([("text", pa.chunked_array([["b", "a", "c"]]))]),
        data_fingerprint([("words", column)]),
        data_fingerprint([("text", column)], "lower case"),
    ]
    assert len({first, *others}) == 5
    (tmp_path / "a.png").write_bytes(b"1")
    images = pa.chunked_array([[{"bytes": None, "path": str(tmp_path / "a.png")}]])
    before = data_fingerprint([("image", images)])
    (tmp_path / "a.png").write_bytes(b"12")
    assert data_fingerprint([("image", images)]) != before
