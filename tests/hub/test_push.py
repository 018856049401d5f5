"""Pushes to a test server that fails in the ways the Hub can fail."""

import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import thread

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import save_file

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, cli
from maxsup_hf.hub.push import Destination, PushError, ensure_destination, push, push_folder
from maxsup_hf.hub.retries import Deadline
from maxsup_hf.trainer.complete import last_checkpoint
from tests import HANGS, tiny, warm

ME = Destination("me/tiny", token="hf_writer")
LOOKS = "hf_" + "0a1B" * 6


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
    assert sum("PUT /lfs" in request for request in here.requests) == uploads == 1 and len(repo.branches["main"]) == 2


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
    cli.main(["push", str(saved), "tiny"])
    assert "no change: the repository already has these files" in capsys.readouterr().out
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(SystemExit) as stop:
        cli.main(["push", str(saved), "me/tiny"])
    assert stop.value.code == 1 and isinstance(stop.value.__cause__, PushError)
    assert capsys.readouterr().err.startswith("error: the token of me has the role read")


def test_a_public_request_for_a_private_repository_is_warned_of(here, caplog):
    ensure_destination(Destination("me/tiny", "hf_writer", private=True))
    ensure_destination(Destination("me/tiny", "hf_writer", private=False))
    assert "me/tiny already exists and is private, but public was requested" in caplog.text
    assert here.repos["me/tiny"].private


def test_nothing_private_is_pushed_to_a_public_repository(here, saved):
    ensure_destination(ME)
    with pytest.raises(PushError, match=r"me/tiny already exists and is public.*`hf repo settings me/tiny --private`"):
        push_folder(saved, Destination("me/tiny", "hf_writer", private=True))
    assert len(here.repos["me/tiny"].branches["main"]) == 1 and not here.repos["me/tiny"].private


def test_a_pull_request_to_somebody_elses_model(here, saved, tmp_path):
    push_folder(saved, ME)
    stranger = Destination("me/tiny", "hf_stranger")
    with pytest.raises(PushError, match=r"stranger cannot push to the namespace 'me'.*--create-pr"):
        push_folder(saved, stranger)
    folder = shutil.copytree(saved, tmp_path / "changed")
    (folder / "notes.txt").write_text("A proposal.")
    push_folder(folder, stranger, create_pr=True)
    repo = here.repos["me/tiny"]
    assert "notes.txt" in repo.files("refs/pr/1") and "notes.txt" not in repo.files("main")
    (folder / "notes.txt").write_text("A better proposal.")
    for create_pr in (False, True):  # both add to the one that is open
        push_folder(folder, Destination("me/tiny", "hf_stranger", revision="refs/pr/1"), create_pr=create_pr)
    assert repo.files("refs/pr/1")["notes.txt"] == b"A better proposal." and "refs/pr/2" not in repo.branches
    with pytest.raises(PushError, match="reading me/tiny failed: 404"):
        push_folder(folder, Destination("me/tiny", "hf_stranger", revision="refs/pr/9"))
    assert not any("/branch/" in request for request in here.requests)


# ---- what is pushed ----


def test_the_pushed_card_speaks_of_the_repository(here, tmp_path):
    folder = tmp_path / "run"
    trainer = train(folder, push_to_hub=False, hub_model_id=None, save_strategy="no", loss="maxsup")
    trainer.save_model()
    trainer.save_state()
    (folder / "all_results.json").write_text('{"eval_accuracy": 0.5}')
    trainer.state.best_model_checkpoint = str(folder / "checkpoint-1")
    trainer.save_state()
    trainer.create_model_card(tasks="image-classification", dataset="digits")
    logs = folder / "runs" / "Nov26_12-00-00_machine-7" / "events.out.tfevents.1.machine-7.2.0"
    logs.parent.mkdir(parents=True)
    logs.write_bytes(b"machine-7")
    (folder / "predictions").mkdir()
    for name in ("predictions.csv", "predictions/0.png"):
        (folder / name).write_bytes(b"machine-7")
    before = snapshot(folder)
    for name in ("bird", "cat"):
        if name == "cat":  # as if it had been trained for another repository
            recorded = json.loads((folder / "run.json").read_text()) | {"repo_id": "me/bird", "model_name": "bird"}
            (folder / "run.json").write_text(json.dumps(recorded))
            before = snapshot(folder)
        push_folder(folder, Destination(f"me/{name}", "hf_writer"))
        pushed = here.repos[f"me/{name}"].files("main")
        text = pushed["README.md"].decode()
        assert f"# {name}\n" in text and f'"me/{name}"' in text and '"run"' not in text
        assert ModelCard(text).data.model_name == name
        assert not [path for path, content in pushed.items() if "machine-7" in path or b"machine-7" in content]
        state = json.loads(pushed["trainer_state.json"])
        assert state["best_model_checkpoint"] == "checkpoint-1" and str(tmp_path).encode() not in b"".join(pushed.values())
    assert snapshot(folder) == before


def test_the_state_of_a_loss_is_pushed_if_it_has_one(here, saved, tmp_path):
    for name, tensors in (("empty", {}), ("learned", {"mean": torch.zeros(3)})):
        folder = shutil.copytree(saved, tmp_path / name)
        save_file(tensors, folder / "loss_state.safetensors", {"loss": "maxsup"})
        push_folder(folder, Destination(f"me/{name}", "hf_writer"))
        assert ("loss_state.safetensors" in here.repos[f"me/{name}"].files("main")) == bool(tensors)


@pytest.mark.parametrize("name", ["found.csv", "Test/found.JSONL", "found.parquet"])
def test_predictions_are_not_pushed_under_any_name(name, here, saved, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "saved")
    masks = (folder / name).with_suffix("")
    for path in (folder / name, masks / "0.png", folder / "figures" / "0.png", folder / "per_class.csv"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"mine")
    with caplog.at_level(logging.INFO):
        push_folder(folder, ME)
    pushed = here.repos["me/tiny"].files("main")
    assert {path for path, content in pushed.items() if content == b"mine"} == {"per_class.csv", "figures/0.png"}
    assert f"not pushed, because tables may be predictions, which repeat the test data: {name}" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no weights as safetensors"),
        (b"", "model.safetensors is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "model.safetensors is damaged"),
    ],
)
def test_a_model_without_its_weights_is_not_pushed(content, message, here, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "saved")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    save_file({"mean": torch.zeros(3)}, folder / "loss_state.safetensors", {"loss": "maxsup"})
    (folder / "model.safetensors").unlink()
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(PushError, match=message):
        push_folder(folder, ME)
    assert not here.requests


def test_a_full_disk_while_a_push_is_prepared_is_one_line(here, saved, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    (folder := shutil.copytree(saved, tmp_path / "saved")).joinpath("config.yaml").write_text("seed: 1")
    monkeypatch.setattr("maxsup_hf.hub.staging.link_files", fail)
    with pytest.raises(PushError, match="No space left on device"):
        push_folder(folder, ME)


def test_paths_of_any_root_are_left_out_of_settings(here, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "saved")
    (folder / "config.yaml").write_text("train_file: /team/me/my data/train.csv\nlearning_rate: 1e-05\n")
    (folder / "trainer_state.json").write_text('{"best_model_checkpoint": "/team/me/checkpoint-1", "learning_rate": 1e-05}')
    (folder / "analysis").mkdir()
    page = '<h1>on {}photos</h1><img src="data:image/png;base64,a+/home/me/b">'
    (folder / "analysis" / "report.html").write_text(page.format("/home/me/"))
    push_folder(folder, ME)
    pushed = here.repos["me/tiny"].files("main")
    assert pushed["analysis/report.html"].decode() == page.format("")
    assert pushed["config.yaml"] == b"train_file: train.csv\nlearning_rate: 1e-05\n"
    assert json.loads(pushed["trainer_state.json"]) == {"best_model_checkpoint": "checkpoint-1", "learning_rate": 1e-05}


@pytest.mark.parametrize("secret", [LOOKS, "https://me:planted-password@example.org", "planted-in-a-variable"])
def test_a_file_with_a_token_is_not_pushed(secret, here, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted-in-a-variable")
    folder = shutil.copytree(saved, tmp_path / "saved")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.bmp").write_bytes(b"\xff\x00" * 4000 + secret.encode() + b"\x00\xff")
    with pytest.raises(
        PushError, match=r"notes/mine.bmp contains a token or a key, so nothing was pushed: remove it"
    ) as caught:
        push_folder(folder, ME)
    assert secret not in str(caught.value) and not any(secret.encode() in body for body in here.received)
    assert len(here.repos["me/tiny"].branches["main"]) == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("base_model: /home/me/base", '"base_model" with value "/home/me/base" is not valid'),
        ("license: [mit", "while parsing"),
        ("license: null", '"license" must be a string'),
        ("model-index: [{name: a, results: [{dataset: {name: a, type: b}, metrics: [{type: f1, value: .nan}]}]}]", "finite"),
    ],
)
def test_metadata_that_the_hub_refuses(metadata, message, here):
    """Of whoever pushes without the checks and corrections of `push`."""
    ensure_destination(ME)
    card = f"---\n{metadata}\n---\n# Mine\n".encode()
    with pytest.raises(ValueError, match=f"Invalid metadata in README.md.*(?s:.*){message}"):
        HfApi(here.url, "hf_writer").upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/tiny")
    assert len(here.repos["me/tiny"].branches["main"]) == 1


def test_an_invalid_card_is_named_by_its_folder(here, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "saved")
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n# Mine\n")
    with pytest.raises(PushError, match=f"{folder}/README.md is not a valid model card"):
        push_folder(folder, ME)
    assert len(here.repos["me/tiny"].branches["main"]) == 1


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
        (Destination(f"me/{LOOKS}", "hf_writer"), "the repository name is or has a token, which everybody would see"),
        (Destination("me/tiny", "hf_writer", revision=LOOKS), "the revision is or has a token"),
        (Destination("me/tiny", "hf_writer", revision=""), "revision is empty; give it a value, or leave it out"),
    ],
)
def test_refused_before_anything_is_sent(to, message, here, tmp_path):
    args = MaxSupTrainingArguments(
        str(tmp_path), use_cpu=True, push_to_hub=True, hub_model_id=to.repo_id, hub_token=to.token, hub_revision=to.revision
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
        ("POST /api/models/me/tiny/commit", {"status": 412}),
        ("POST /api/models/me/tiny/commit", {"status": 522}),
        ("POST /api/models/me/tiny/commit", {"status": 200, "body": b"<html>maintenance</html>"}),
        ("GET /api/whoami-v2", {"status": 200, "body": b"<html>maintenance</html>"}),
        ("GET /api/whoami-v2", {"status": 200, "body": b"null"}),
        ("POST /api/models/me/tiny/commit", {"status": 200, "body": b"{}"}),
        ("POST /me/tiny.git/info/lfs/objects/batch", {"status": 500}),
        ("GET /api/models/me/tiny", {"drop": True}),
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
    ("told", "pause"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "300"}, 300.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, 1.0),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 55.0),
        ({"RateLimit": '"api";r=20;t=55'}, 1.0),
    ],
)
def test_the_pause_that_the_hub_asks_for(told, pause, here):
    here.fault("POST /api/repos/create", times=1, status=429, headers=told)
    ensure_destination(ME)
    assert here.pauses == [pause]


def test_a_pause_of_an_hour_is_not_waited_for(here, saved):
    here.fault("POST /api/models/me/tiny/commit", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(PushError, match=r"failed: 429.*the Hub asks to wait for 3,600 s.*`maxsup-hf push .* me/tiny`"):
        push_folder(saved, ME)
    assert not here.pauses


@pytest.mark.parametrize("pause", [200, 3600])
def test_pauses_that_the_client_keeps_itself(pause, here, saved):
    """The client waits inside of a call when the upload of a file is limited, which the deadline allows up to 5 minutes."""
    here.fault("POST /api/models/me/tiny/preupload", times=1, status=429, headers={"RateLimit": f'"api";r=0;t={pause}'})
    deadline = Deadline()
    push(saved, ME, deadline=deadline)
    assert (deadline.seconds, deadline.refused) == ((321.0, None) if pause == 200 else (120.0, 3600.0))


@pytest.mark.parametrize("request_", ["GET /api/whoami", "POST /api/models/me/tiny/preupload", "PUT /lfs"])
def test_a_hub_that_does_not_answer_ends_with_the_command(request_, here, saved, tmp_path):
    saved = shutil.copytree(saved, tmp_path / "saved")
    save_file({"second": torch.zeros(3)}, saved / "second.safetensors")  # the client sends two in threads of its own
    here.fault(request_, delay=20.0)
    with pytest.raises(
        PushError, match=r"did not finish within 1 s \(push_timeout\).*`maxsup-hf push .* me/tiny` pushes it"
    ):
        push_folder(saved, Destination("me/tiny", "hf_writer", timeout=1.0))
    assert not [each for each in thread._threads_queues if each.daemon], "the process would wait for it at exit"


def test_a_pause_longer_than_what_is_left_ends_with_the_command(here, saved):
    here.fault("POST /api/models/me/tiny/commit", status=429, headers={"Retry-After": "200"})
    with pytest.raises(PushError, match=r"no time is left of 60 s \(push_timeout\); the saved model is unchanged"):
        push_folder(saved, Destination("me/tiny", "hf_writer", timeout=60.0))
    assert not here.pauses


@pytest.mark.parametrize(
    ("request_", "fault", "message"),
    [
        ("POST /api/models/me/tiny/commit", {"status": 503}, "pushing .* to me/tiny failed: 503"),
        ("POST /api/models/me/tiny/commit", {"status": 403}, "failed: 403.*the token needs the role write"),
        ("POST /api/models/me/tiny/commit", {"status": 200, "body": b"<html>"}, "answered with something that is not JSON"),
        (
            "PUT /lfs",
            {"status": 500},
            "pushing .* failed: 500: Error while uploading 'model.safetensors' to the Hub.*gave up",
        ),
        (
            "PUT /lfs",
            {"status": 403, "body": b'{"error": "expired"}'},
            "failed: 403: Error while uploading 'model.safe.*expired",
        ),
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
    assert not {"loss_state.safetensors", "training_args.bin", "optimizer.pt"} & set(pushed)  # of no use without resuming


def test_training_survives_a_hub_that_stays_down(here, tmp_path, caplog):
    here.fault("POST /api/models/me/tiny/commit", status=403)
    trainer = train(tmp_path)
    assert "pushes failed during training, and the last one too" in caplog.text and "`maxsup-hf push" in caplog.text
    assert (tmp_path / "model.safetensors").exists()
    with pytest.raises(PushError):
        trainer.push_to_hub()


def test_a_checkpoint_that_cannot_be_copied_for_a_push_stays(here, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maxsup_hf.hub.mixin.shutil.copytree", fail)
    trainer = train(tmp_path)
    assert len(trainer._failed_pushes) == 2 and "No space left on device. Training continues" in caplog.text
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2") and not list(tmp_path.glob("_push-*"))
    assert "model.safetensors" in here.repos["me/tiny"].files("main")


def test_a_slow_hub_ends_with_the_last_step(here, tmp_path):
    here.fault("POST /api/models/me/tiny/preupload", times=1, delay=1.0)
    train(tmp_path, max_steps=6)
    weights = here.repos["me/tiny"].files("main")["model.safetensors"]
    assert weights == (tmp_path / "model.safetensors").read_bytes()


def test_all_checkpoints_reach_the_hub_though_rotation_deletes_them(here, tmp_path):
    here.fault("POST /api/models/me/tiny/preupload", delay=0.3)
    train(tmp_path, max_steps=4, hub_strategy="all_checkpoints", save_total_limit=1)
    pushed = here.repos["me/tiny"].files("main")
    kept = ("model.safetensors", "optimizer.pt", "rng_state.pth", "loss_state.safetensors")
    assert all(f"checkpoint-{step}/{name}" in pushed for step in (1, 2, 3, 4) for name in kept)
    assert "optimizer.pt" not in pushed
    titles = [title for _, title, _ in here.repos["me/tiny"].branches["main"]]
    assert titles.count("End of training") == 1 and len(set(titles)) == len(titles)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not list(tmp_path.glob("_push-*"))


def test_pushes_in_the_background_and_the_last_one_share_a_deadline(here, tmp_path, caplog):
    here.fault("POST /api/models/me/tiny/preupload", delay=20.0)
    trainer = train(tmp_path, push_timeout=2.0)
    assert trainer.state.global_step == 2 and len(trainer._failed_pushes) >= 1
    assert "did not finish within 2 s (push_timeout)" in caplog.text and "`maxsup-hf push" in caplog.text
    assert not list(tmp_path.glob("_push-*"))


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
    result = warm.run("maxsup-hf", *command[3:], cwd=tmp_path, env=hub_environment)
    assert result.returncode == 2 and "the token of me has the role read" in result.stderr
