"""Pushes to a test server that fails in the ways the Hub can fail."""

import logging
import pickle
import subprocess
import sys

import huggingface_hub
import pytest
import torch

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, cli
from maxsup_hf.hub import push
from maxsup_hf.hub.push import Destination, PushError, ensure_destination, push_folder
from tests import HANGS, tiny

ME = Destination("me/tiny", token="hf_writer")


@pytest.fixture
def here(hub, monkeypatch, tmp_path):
    """This process talks to `hub`; pauses are recorded instead of waited for."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    pauses = []
    monkeypatch.setattr(push.time, "sleep", pauses.append)
    huggingface_hub.close_session()
    hub.pauses = pauses
    yield hub
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    tiny.vit().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_bytes(b"a pickle")
    return folder


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- pushes that succeed ----


def test_one_commit_without_pickles_and_a_second_push_sends_nothing(here, saved):
    push_folder(saved, ME)
    repo = here.repos["me/tiny"]
    assert set(repo.files("main")) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    assert len(repo.branches["main"]) == 2  # the repository's own first commit, and ours
    assert repo.files("main")["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    uploads = sum("PUT /lfs" in request for request in here.requests)
    push_folder(saved, ME)
    assert sum("PUT /lfs" in request for request in here.requests) == uploads == 1


def test_a_missing_branch_and_a_pull_request_are_created(here, saved):
    push_folder(saved, Destination("me/tiny", "hf_writer", revision="experiments"))
    repo = here.repos["me/tiny"]
    assert "model.safetensors" in repo.files("experiments") and "model.safetensors" not in repo.files("main")
    info = push_folder(saved, ME, create_pr=True)
    assert info.pr_url and "model.safetensors" in repo.files("refs/pr/1")


def test_from_the_command_line(here, saved, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    cli.main(["push", str(saved), "tiny", "--private"])
    assert here.repos["me/tiny"].private and "pushed to http" in capsys.readouterr().out
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(SystemExit) as stop:
        cli.main(["push", str(saved), "me/tiny"])
    assert stop.value.code == 1 and isinstance(stop.value.__cause__, PushError)
    assert capsys.readouterr().err.startswith("error: the token of me has the role read")


@pytest.mark.parametrize(("there", "asked"), [(True, False), (False, True)])
def test_a_different_visibility_is_warned_of(there, asked, here, caplog):
    ensure_destination(Destination("me/tiny", "hf_writer", private=there))
    ensure_destination(Destination("me/tiny", "hf_writer", private=asked))
    words = ["public", "private"]
    assert f"me/tiny already exists and is {words[there]}, but {words[asked]} was requested" in caplog.text


# ---- checks before anything is sent ----


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (Destination("me/tiny"), "no token for the Hub: run `hf auth login`"),
        (Destination("me/tiny", "hf_wrong"), "checking the token failed: 401.*run `hf auth login`"),
        (Destination("me/tiny", "hf_reader"), "the token of me has the role read: create one with the role write"),
        (Destination("you/tiny", "hf_writer"), "me cannot push to the namespace 'you', only to me, my-org: change"),
        (Destination("me/a b", "hf_writer"), "'me/a b' is not a valid repository name, expected NAME or NAMESPACE/NAME"),
        (Destination("me/you/tiny", "hf_writer"), "'me/you/tiny' is not a valid repository name"),
    ],
)
def test_refused_before_anything_is_sent(to, message, here, tmp_path):
    args = MaxSupTrainingArguments(
        str(tmp_path), use_cpu=True, push_to_hub=True, hub_model_id=to.repo_id, hub_token=to.token
    )
    with pytest.raises(PushError, match=message) as caught:
        MaxSupTrainer(tiny.vit(), args)
    assert not here.repos and (to.token is None or to.token not in str(caught.value))
    assert caught.value.__cause__ is not None or "401" not in message


def test_offline_trains_and_says_how_to_push_later(here, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    trainer = train(tmp_path)
    assert trainer.state.global_step == 2 and not here.requests
    assert f"To push later: `maxsup-hf push {tmp_path} me/tiny`" in caplog.text


def test_a_folder_without_a_model_is_refused(here, tmp_path):
    with pytest.raises(PushError, match="neither config.json nor adapter_config.json: give the folder of a saved model"):
        push_folder(tmp_path, ME)


# ---- transient and permanent errors ----


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("POST /api/repos/create", {"status": 429, "headers": {"Retry-After": "7"}}),
        ("POST /api/models/me/tiny/commit", {"status": 409}),
        ("POST /api/models/me/tiny/commit", {"status": 503}),
        ("POST /api/models/me/tiny/commit", {"status": 200, "body": b"<html>maintenance</html>"}),
        ("GET /api/whoami-v2", {"status": 200, "body": b"<html>maintenance</html>"}),
        ("PUT /lfs", {"drop": True}),
        ("POST /api/models/me/tiny/commit", {"drop": True}),
    ],
)
def test_transient_errors_are_retried(request_, fault, here, saved, caplog):
    before = snapshot(saved)
    here.fault(request_, times=2, **fault)
    push_folder(saved, ME)
    assert "model.safetensors" in here.repos["me/tiny"].files("main")
    assert snapshot(saved) == before
    if "Retry-After" in fault.get("headers", {}):
        assert here.pauses == [7.0, 7.0]


@pytest.mark.parametrize(
    ("told", "pause"), [("7", 7.0), ("120", 60.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 1.0), ("soon", 1.0)]
)
def test_the_pause_that_the_hub_asks_for(told, pause, here):
    """A date in the past and an invalid value lead to the usual pause; no pause is longer than a minute."""
    here.fault("POST /api/repos/create", times=1, status=429, headers={"Retry-After": told})
    ensure_destination(ME)
    assert here.pauses == [pause]


@pytest.mark.parametrize(
    ("request_", "fault", "message"),
    [
        ("POST /api/models/me/tiny/commit", {"status": 503}, "pushing .* to me/tiny failed: 503"),
        ("POST /api/models/me/tiny/commit", {"status": 403}, "failed: 403.*the token needs the role write"),
        ("POST /api/models/me/tiny/commit", {"status": 200, "body": b"<html>"}, "answered with something that is not JSON"),
        ("PUT /lfs", {"status": 500}, "pushing .* failed"),
    ],
)
def test_permanent_errors_name_the_next_command(request_, fault, message, here, saved):
    before = snapshot(saved)
    lasting = here.fault(request_, **fault)
    with pytest.raises(PushError, match=message) as caught:
        push_folder(saved, ME)
    assert caught.value.__cause__ is not None
    assert f"the saved model is unchanged: `maxsup-hf push {saved} me/tiny` pushes it" in str(caught.value)
    assert snapshot(saved) == before
    if fault["status"] == 403:
        assert not here.pauses  # another attempt would be refused as well
    here.faults.remove(lasting)
    push_folder(saved, ME)
    assert "model.safetensors" in here.repos["me/tiny"].files("main")


# ---- pushes during training ----


def train(folder, **kwargs):
    options = dict(use_cpu=True, disable_tqdm=True, max_steps=2, save_steps=1, push_to_hub=True, hub_model_id="me/tiny",
                   hub_token="hf_writer", hub_strategy="every_save")  # fmt: skip
    torch.manual_seed(0)
    data = tiny.rows(tiny.batch("vit", size=16))
    trainer = MaxSupTrainer(tiny.vit(), MaxSupTrainingArguments(str(folder), **options | kwargs), train_dataset=data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_failed_background_push_is_reported_and_made_up_for(status, here, tmp_path, caplog):
    here.fault("POST /api/models/me/tiny/commit", times=1, status=status)
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path)
    assert trainer.state.global_step == 2 and len(trainer._failed_pushes) == 1
    assert f"failed: {status}" in caplog.text and "Training continues" in caplog.text
    pushed = here.repos["me/tiny"].files("main")
    assert pushed["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()
    assert "loss_state.safetensors" in pushed


def test_training_survives_a_hub_that_stays_down(here, tmp_path, caplog):
    here.fault("POST /api/models/me/tiny/commit", status=403)
    trainer = train(tmp_path)
    assert "pushes failed during training, and the last one too" in caplog.text and "`maxsup-hf push" in caplog.text
    assert (tmp_path / "model.safetensors").exists()
    with pytest.raises(PushError):
        trainer.push_to_hub()


def test_a_slow_hub_ends_with_the_last_step(here, tmp_path):
    here.fault("POST /api/models/me/tiny/preupload", times=1, delay=3.0)
    train(tmp_path, max_steps=6)
    weights = here.repos["me/tiny"].files("main")["model.safetensors"]
    assert weights == (tmp_path / "model.safetensors").read_bytes()


def test_all_checkpoints_reach_the_hub_though_rotation_deletes_them(here, tmp_path):
    here.fault("POST /api/models/me/tiny/preupload", delay=0.3)
    train(tmp_path, max_steps=4, hub_strategy="all_checkpoints", save_total_limit=1)
    pushed = here.repos["me/tiny"].files("main")
    assert all(f"checkpoint-{step}/model.safetensors" in pushed for step in (1, 2, 3, 4))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not list(tmp_path.glob("_push-*"))


def test_the_token_is_never_written(here, tmp_path, caplog, capsys):
    trainer = train(tmp_path, hub_strategy="all_checkpoints")
    assert trainer.args.hub_token == "hf_writer"
    secret = b"hf_writer"
    assert not any(secret in body for body in here.received)
    assert not any(secret in content for content in snapshot(tmp_path).values())
    assert secret not in pickle.dumps(trainer.args) and "hf_writer" not in caplog.text + "".join(capsys.readouterr())
    assert "hf_writer" not in repr(trainer.args.to_dict()) + trainer.args.to_json_string()


def test_a_users_own_readme_is_kept(here, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# My model\n\nWritten by hand.\n")
    train(tmp_path, hub_strategy="end").push_to_hub()
    pushed = here.repos["me/tiny"].files("main")["README.md"].decode()
    assert "Written by hand." in pushed and "license: mit" in pushed


def test_training_on_the_command_line_names_the_next_command(hub, hub_environment, tmp_path):
    flags = ["--max_steps", "1", "--max_train_samples", "32", "--max_eval_samples", "16", "--disable_tqdm", "true"]
    command = [sys.executable, "-m", "maxsup_hf", "train", "image-classification", "--output_dir", "out", "--push_to_hub",
               "true", "--hub_model_id", "me/digits", *flags]  # fmt: skip
    hub.fault("POST /api/models/me/digits/commit", status=403)
    result = subprocess.run(command, env=hub_environment, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: pushing out to me/digits failed: 403")
    assert "`maxsup-hf push out me/digits` pushes it" in result.stderr and "Traceback" not in result.stderr
    hub_environment["HF_TOKEN"] = "hf_reader"
    command[command.index("out")] = "other"
    result = subprocess.run(command, env=hub_environment, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 2 and "the token of me has the role read" in result.stderr
