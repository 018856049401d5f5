"""Model cards written from the record of a run."""

import json
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoModelForImageClassification, PreTrainedTokenizerFast, ViTImageProcessorPil

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, cli, create_loss
from maxsup_hf.hub.card import START, write_benchmark_result, write_card
from maxsup_hf.hub.record import _command, load_record
from maxsup_hf.scripts.common.arguments import ScriptArguments
from maxsup_hf.scripts.common.models import build_model, load_config
from tests import tiny, warm


def train(folder, name="vit", processing_class=None, **kwargs):
    torch.manual_seed(0)
    data = tiny.rows(tiny.batch(name, size=16))
    args = MaxSupTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, max_steps=2, save_strategy="no", **kwargs)
    trainer = MaxSupTrainer(
        tiny.CLASSIFIERS[name](),
        args,
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda p: {"accuracy": 0.5},
        processing_class=processing_class,
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = train(folder, loss="maxsup+z_loss", loss_kwargs={"maxsup": {"alpha": 0.3}})
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    trainer.create_model_card(tasks="image-classification", dataset="digits", license="mit", tags="mine")
    return folder


def test_metadata(run):
    data = ModelCard.load(run / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-classification", "mit")
    assert data.tags == ["maxsup", "z_loss", "mine"] and data.base_model is None and data.datasets is None
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.5, "validation")


def test_text(run):
    text = (run / "README.md").read_text()
    assert "https://arxiv.org/abs/2502.15798" in text
    assert "| `maxsup.alpha` | 0.3 |" in text and "| accuracy ↑ | 0.5 |" in text
    assert text.count("@inproceedings{zhou2025maxsup") == 1 and "@article{chowdhery2022palm" in text
    assert "szegedy" not in text and "- learning_rate: 5e-05" in text and "- steps: 2" in text
    assert "None" not in text and "python/object" not in text and not re.search(r"\n{3,}", text)


def test_class_weights(run, tmp_path):
    trainer = train(tmp_path / "named")
    trainer.model.config.id2label = dict(enumerate(["ant", "bee", "a|b", "cow", "dog"]))
    trainer.trained_class_weights = torch.tensor([1.0, 20.0, 1 / 3, 0.0, 1e-5])
    trainer.create_model_card()
    found = load_record(tmp_path / "named")["loss"]["class_weights"]
    assert found == {"ant": 1.0, "bee": 20.0, "a|b": 0.333333, "cow": 0.0, "dog": 1e-05}
    table = (
        "| class | weight |\n| --- | ---: |\n| ant | 1 |\n| bee | 20 |\n| a\\|b | 0.3333 |\n| cow | 0 |\n| dog | 1e-05 |\n"
    )
    assert table in (tmp_path / "named" / "README.md").read_text()
    assert "weighted" not in (run / "README.md").read_text() and "class_weights" not in load_record(run)["loss"]


def test_weights_of_many_classes_are_summarized(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    found = load_record(run)
    found["loss"]["class_weights"] = {f"class {k}": 1 + k / 8 for k in range(40)}
    (folder / "run.json").write_text(json.dumps(found))
    text = write_card(folder).read_text()
    assert "From 1 to 5.875 over 40 classes; the largest: class 39 (5.875), class 38 (5.75), class 37 (5.625)" in text
    assert "class 34" not in text and not re.search(r"\n{3,}", text)


def test_weights_of_a_model_without_names_are_numbered(tmp_path):
    trainer = train(tmp_path)
    trainer.model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    trainer.trained_class_weights = torch.tensor([1.0, 2.0, 3.0])
    trainer.create_model_card()
    assert load_record(tmp_path)["loss"]["class_weights"] == {"0": 1.0, "1": 2.0, "2": 3.0}


def test_the_loss_is_what_was_trained(tmp_path):
    trainer = train(tmp_path / "out", loss="maxsup")
    trainer.trained_loss = create_loss("label_smoothing", alpha=0.3)
    trainer.create_model_card()
    assert load_record(tmp_path / "out")["loss"]["name"] == "label_smoothing"
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.tags == ["maxsup", "label_smoothing"] and "| `alpha` | 0.3 |" in card.text


@pytest.mark.parametrize("tags", [None, "mine"])
def test_without_training_the_card_names_no_loss(tags, tmp_path):
    trainer = train(tmp_path / "out", loss="maxsup")
    trainer.trained_loss = None
    trainer.create_model_card(dataset="digits", tags=tags)
    assert "loss" not in load_record(tmp_path / "out")
    for _ in range(2):  # also if there is a card already
        card = ModelCard.load(tmp_path / "out" / "README.md")
        assert (card.data.tags or []) == ([tags] if tags else [])
        assert "## Loss" not in card.text and "), trained" not in card.text and "## Training" in card.text
        assert "zhou2025maxsup" not in card.text and not re.search(r"\n{3,}", card.text)
        write_card(tmp_path / "out")


@pytest.mark.parametrize(("source", "said"), [("", "trained"), ("folder", "fine-tuned"), ("me/base", "fine-tuned")])
def test_the_base_model(source, said, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    trainer = train(tmp_path / "out", loss="maxsup")
    trainer.model.config.name_or_path = str(folder) if source == "folder" else source
    trainer.create_model_card(dataset="digits")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == (source if "/" in source else None) and str(folder) not in card.content
    assert f"{said} on digits" in card.text and ("](https://huggingface.co/me/base)" in card.text) == ("/" in source)


def test_a_model_made_from_a_config_was_not_fine_tuned(run, tmp_path):
    args = ScriptArguments(config_name=str(run))
    assert build_model(AutoModelForImageClassification, load_config(args), args, 0).config.name_or_path == ""
    args = ScriptArguments(model_name_or_path=str(run))
    assert build_model(AutoModelForImageClassification, load_config(args), args, 0).config.name_or_path == str(run)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["card", "out dir"], "maxsup-hf card 'out dir'"),
        (["train", "--hub_token", "hf_1", "--fp16"], "maxsup-hf train --hub_token '<token>' --fp16"),
        (["train", "--hub_token=hf_1", "--push_to_hub_token=hf_1"],
         "maxsup-hf train '--hub_token=<token>' '--push_to_hub_token=<token>'"),
        (["train", "--resume_from_checkpoint", "true", "--seed", "1"], "maxsup-hf train --seed 1"),
        (["train", "--resume_from_checkpoint=out", "--seed", "1"], "maxsup-hf train --seed 1"),
    ],
)  # fmt: skip
def test_the_recorded_command_has_no_tokens_and_does_not_resume(words, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/maxsup-hf", *words])
    assert _command() == expected
    monkeypatch.setattr(sys, "argv", ["/home/me/train.py", *words])
    assert _command() is None


def test_the_code_in_it_runs(run):
    (code,) = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)
    result = warm.run("-c", code, cwd=run.parent)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"(0\.\d\d LABEL_\d\n){3}", result.stdout), "the three likeliest classes"


def test_the_code_shows_what_the_model_answers(run, tmp_path, monkeypatch, capsys):
    """An image is given to the command; a text classifier has a sentence of its own."""
    images = shutil.copytree(run, tmp_path / "images")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.bmp")
    cli.main(["card", str(images), "--example", str(tmp_path / "red.bmp")])
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]"))
    trainer = train(
        tmp_path / "texts", "bert", processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    )
    trainer.create_model_card(tasks="text-classification")
    monkeypatch.chdir(tmp_path)
    for name in ("images", "texts"):
        (code,) = re.findall(r"```python\n(.*?)```", Path(name, "README.md").read_text(), re.DOTALL)
        shown = re.findall("^# (.*)\n", code, re.MULTILINE)
        capsys.readouterr()
        exec(code, {})
        assert capsys.readouterr().out.splitlines() == shown and len(shown) == 3, name


def test_writing_again_changes_nothing(run, capsys):
    before = (run / "README.md").read_bytes()
    cli.main(["card", str(run)])
    assert (run / "README.md").read_bytes() == before and str(run) in capsys.readouterr().out


def test_a_card_of_an_earlier_version_is_rewritten_in_place(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / run.name)
    text = (folder / "README.md").read_text()
    old_mark = "<!-- maxsup_hf: what stands between these marks is written anew with every card -->"
    assert text.count(START) == 1
    (folder / "README.md").write_text("\n\n".join([text.replace(START, old_mark), "Written by hand."]))
    card = write_card(folder).read_text()
    assert card == f"{text}\nWritten by hand.\n"


def test_new_results_and_figures_are_added(run):
    (run / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.75, "test_accuracy": 0.7, "eval_runtime": 3.0}))
    (run / "figures").mkdir()
    (run / "figures" / "reliability_diagram.png").write_bytes(b"")
    write_card(run)
    text = (run / "README.md").read_text()
    assert "| metric | validation | test |\n| --- | ---: | ---: |\n| accuracy ↑ | 0.75 | 0.7 |" in text
    assert "\n- accuracy: share of rows that are predicted right\n" in text
    assert "runtime" not in text
    assert "![reliability diagram](figures/reliability_diagram.png)" in text
    assert {r.dataset_split for r in ModelCard.load(run / "README.md").data.eval_results} == {"validation", "test"}


def test_feature_geometry_is_a_result(tmp_path):
    """`FeatureGeometryCallback` logs it after the evaluation, without the prefix `eval_`."""
    trainer = train(tmp_path)
    trainer.log({"feature_within": 0.25, "feature_r2": 0.5})
    trainer.create_model_card()
    assert load_record(tmp_path)["results"] == {"eval_accuracy": 0.5, "eval_feature_within": 0.25, "eval_feature_r2": 0.5}
    (tmp_path / "all_results.json").write_text(json.dumps({"feature_r2": 0.75, "test_feature_r2": 0.6}))
    write_card(tmp_path)
    assert "| R² | 0.75 | 0.6 |" in (tmp_path / "README.md").read_text()


def test_a_benchmarks_result(run, capsys):
    sha = "5" * 40
    flags = ["--benchmark", "my-org/birds", "--task_id", "species", "--metric", "eval_accuracy"]
    cli.main(["card", str(run), *flags, "--benchmark_revision", sha])
    path = run / ".eval_results" / "birds_species.yaml"
    assert str(path) in capsys.readouterr().out
    (entry,) = huggingface_hub.parse_eval_result_entries(yaml.safe_load(path.read_text()))
    found = write_benchmark_result(run, "my-org/birds", "species", "eval_accuracy")
    assert found == path and sha not in path.read_text(), "the file is overwritten"
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("my-org/birds", "species", sha)
    assert entry.value == load_record(run)["results"]["eval_accuracy"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmark", "my-org/birds"], "--benchmark and --task_id must be given together"),
        (["--benchmark", "birds", "--task_id", "a", "--metric", "eval_accuracy"], "as owner/name, got 'birds'"),
        (["--benchmark", "my-org/birds", "--task_id", "a/b", "--metric", "eval_accuracy"], "a task in the benchmark's"),
        (
            ["--benchmark", "my-org/birds", "--task_id", "a", "--metric", "eval_f1"],
            "one of the run's results (eval_accuracy",
        ),
    ],
)
def test_bad_benchmark_arguments_are_refused(flags, message, run, capsys):
    with pytest.raises(SystemExit):
        cli.main(["card", str(run), *flags])
    assert message in capsys.readouterr().err


def test_a_users_card_is_kept_and_extended(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags:\n- birds\n---\n# My model\n\nWritten by hand.\n")
    trainer = train(tmp_path)
    for _ in range(2):
        trainer.create_model_card(license="apache-2.0")
        text = (tmp_path / "README.md").read_text()
        assert text.index("Written by hand.") < text.index("- steps: 2") and text.count("## Training") == 1
        data = ModelCard.load(tmp_path / "README.md").data
        assert data.license == "mit" and data.tags == ["birds", "maxsup"]
    assert text == (tmp_path / "README.md").read_text()


def test_an_invalid_card_is_refused_before_training(tmp_path):
    broken = "---\nlicense: [mit\n---\n# My model\n"
    (tmp_path / "README.md").write_text(broken)
    args = MaxSupTrainingArguments(str(tmp_path), use_cpu=True, push_to_hub=True, hub_token="hf_writer")
    with pytest.raises(ValueError, match=r"README.md is not a valid model card.*Fix its metadata"):
        MaxSupTrainer(tiny.vit(), args)
    assert (tmp_path / "README.md").read_text() == broken


def test_a_folder_without_a_record_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["card", str(tmp_path)])
    assert stop.value.code == 2 and "has no run.json, from which the card is written" in capsys.readouterr().err


def test_the_client_accepts_the_card(run, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.repocard, "ENDPOINT", hub.url, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    ModelCard.load(run / "README.md").validate()
    assert hub.requests == ["POST /api/validate-yaml"]
    huggingface_hub.close_session()
