"""Secrets are planted in every spelling, and searched for in every byte that is written, printed and pushed."""

import base64
import copy
import json
import logging
import pickle
import sys
from dataclasses import dataclass, field

import datasets
import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from maxsup_hf import MaxSupArgumentsMixin, MaxSupTrainer, MaxSupTrainingArguments, cli
from maxsup_hf.comparison import cli as comparison
from maxsup_hf.comparison import one_run
from maxsup_hf.comparison.execute import command
from maxsup_hf.comparison.plan import Plan, keep_plan, load_plan
from maxsup_hf.hub.push import Destination, PushError
from maxsup_hf.output import secrets
from maxsup_hf.output.files import replacing
from maxsup_hf.output.guard import masked_output
from maxsup_hf.output.private import public_text, public_values, without_host
from maxsup_hf.output.secrets import has_secret, is_secret_flag, keep_flags, keep_settings, masked, masked_words
from maxsup_hf.scripts.common import run
from tests import tiny
from tests.hub import endpoints
from tests.hub.conftest import here, hub  # noqa: F401 (fixtures)

LOOKS = "hf_" + "0a1B2c3D" * 4
VARIABLES = {
    name: f"planted-in-{name.lower().replace('_', '-')}"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "COMET_API_KEY", "MLFLOW_TRACKING_PASSWORD", "NEPTUNE_API_TOKEN")
}
FLAGS = ["planted-flag-1", "planted-flag-2", "planted-flag-3", "planted-flag-4"]
SPELLINGS = ["--hub_token", FLAGS[0], f"--hub_token={FLAGS[1]}", "--hub-token", FLAGS[2], f"--hub-token={FLAGS[3]}"]
IN_CONFIG, STORED, WRONG = "planted-in-the-config", "planted-and-stored", "planted-in-a-wrong-flag"
PLANTED = [LOOKS, *VARIABLES.values(), *FLAGS, IN_CONFIG, STORED, WRONG]
MISSPELLED = [
    [f"--hub_tok={WRONG}"], [f"--hubtoken={WRONG}"], ["--hub-tok", WRONG], ["--hub_t", WRONG], [f"--hf_token={WRONG}"],
    ["--token", WRONG], [f"--hub_tokne={WRONG}"], [f"--push_to_hub_token={WRONG}"], [f"--hub_token:{WRONG}"],
    [f"hub_token={WRONG}"], ["—hub_token", WRONG], ["--accelerator_config", f'{{"hub_token": "{WRONG}"}}'],
]  # fmt: skip
LONG = "planted-in-another-variable"
OTHERS = (
    "HUGGINGFACEHUB_API_TOKEN",
    "CODECARBON_API_KEY",
    "DAGSHUB_TOKEN",
    "GITHUB_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
)
TEXTS = {  # text -> the secret in it
    "https://me:pass-word@example.org": "pass-word",
    "https://me:pass:word@example.org": "pass:word",
    "redis://:pass-word@example.org": "pass-word",
    "https://0123456789abcdef0123@sentry.io/1": "0123456789abcdef0123",
    "https://a.org/b?c=1&access_token=0123456789abcdef&d=2": "0123456789abcdef",
    "https://a.org/b?api_key=0123456789abcdef": "0123456789abcdef",
    "https://a.org/b?sv=1&sig=0123456789abc%2Fdef": "0123456789abc%2Fdef",
    f"'eyJhcGlfYWRkcmVzcyI6I{'Aa0' * 20}=='": "Aa0Aa0",
}
CONFIGS = {
    "anchor.yaml": f"hub_token: &mine {WRONG}\nnothing: 1\n",
    "escaped.yaml": f'"hub_\\x74oken": {WRONG}\nnothing: 1\n',
    "nested.yaml": f"accelerator_config: {{hub_token: {WRONG}}}\nnothing: 1\n",
    "colon.yaml": f"hub_token: {WRONG}: x\n",
    "bracket.yaml": f"hub_token: [{WRONG}\n",
    "tab.yaml": f"seed:\t1\n\thub-token: '{WRONG}'\n",
    "misspelled.yaml": f"hub_tok: {WRONG}\n",
    "block.yaml": f"hub_token: >\n  {WRONG}\nnothing: 1\n",
    "cut.json": f'{{"seed": 1, "hub_token": "{WRONG}", ',
}


def run_here(plan, folder, jobs):
    """The runs of a comparison, in this process."""
    for each in plan.runs():
        words = command(plan, each, folder)
        one_run.main(words[words.index("maxsup_hf.comparison.one_run") + 1 :])
    return {}


class Search:
    """Counts and remembers what was searched."""

    def __init__(self):
        self.count, self.size, self.found = 0, 0, []

    def __call__(self, where, content):
        self.size += len(content)
        for value in PLANTED:
            for spelling in (value.encode(), base64.b64encode(value.encode()).rstrip(b"=")[:-1]):
                self.count += 1
                if spelling in content:
                    self.found.append((where, value))

    def folder(self, folder, left_out=()):
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in left_out:
                self(str(path), path.read_bytes())


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A workspace with texts, a small model, and secrets in variables, in a config and stored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(secrets, "_kept", set())
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "token").write_text(f"{STORED}\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    rows = [f"{color} thing {i},{color}" for i in range(12) for color in ("red", "green", "blue")]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    config = tiny.bert(num_labels=3).config
    config.vocab_size = 400
    config.save_pretrained(tmp_path / "config")
    (tmp_path / "run.yaml").write_text(f"hub-token: {IN_CONFIG}\nmax_steps: 1\nrun_name: {LOOKS}\n")
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_no_command_writes_prints_or_pushes_a_secret(planted, here, capsys, caplog, monkeypatch, record_testsuite_property):  # noqa: F811
    search, outputs = Search(), 0
    owner = {value: ("me", "write") for value in (*FLAGS, *VARIABLES.values(), STORED)}
    monkeypatch.setattr(endpoints, "TOKENS", owner)
    monkeypatch.setenv("HF_TOKEN", VARIABLES["HF_TOKEN"])  # which `here` removed

    def call(*words):
        nonlocal outputs
        words = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["maxsup-hf", *words])
        caplog.clear()
        try:
            cli.main(words)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        printed = capsys.readouterr()
        search(" ".join(words), f"{printed.out}{printed.err}{caplog.text}".encode())
        outputs += 1
        return status

    data = ["--train_file", planted / "texts.csv", "--config_name", planted / "config"]
    short = ["--config", planted / "run.yaml", "--save_steps", "1", "--eval_strategy", "no", *SPELLINGS]
    train = ["train", "text-classification", *data, *short]
    trackers = ["--report_to", "tensorboard", "--logging_steps", "1", "--log_level", "info"]
    hub_flags = ["--push_to_hub", "true", "--hub_model_id", "me/tiny", "--hub_strategy", "checkpoint"]
    assert call(*train, "--output_dir", planted / "out", "--save_strategy", "steps", *trackers, *hub_flags) == 0
    files = here.repos["me/tiny"].files("main")
    public = [files[name] for name in ("README.md", "run.json", "config.yaml", "trainer_state.json")]
    assert "--train_file DATA/texts.csv" in public[0].decode() and not any(str(planted).encode() in each for each in public)
    assert str(planted) not in (planted / "out" / "README.md").read_text()
    assert list((planted / "out").rglob("*tfevents*")) and not [path for path in files if "tfevents" in path]

    monkeypatch.setattr(comparison, "execute", run_here)
    compare = ["compare", "text-classification", "--losses", "maxsup", "--seeds", "0", "--output_dir", "two"]
    assert call(*compare, *data, *short) == 0
    assert call("card", "out") == call("push", "out", "me/again") == call("losses") == 0
    assert call("predict", "out", "--test_file", "texts.csv", "--output_file", "found.csv") == 0
    commands = [
        ["train", "text-classification", *data, "--dry_run", "true"], ["compare", "text-classification", "--max_steps", "1"],
        ["predict", "out", "--test_file", "texts.csv"], ["analyze", "out"], ["bench"], ["losses"], ["card", "out"],
        ["push", "out", "me/tiny"],
    ]  # fmt: skip
    for words in commands:
        for flag in MISSPELLED:
            if words[0] != "compare":  # which leaves out what is for a token
                assert call(*words, *flag) == 2, (words, flag)
    for name in CONFIGS:
        assert call("train", "text-classification", *data, "--dry_run", "true", "--config", planted / name) == 2

    search.folder(planted, left_out={"token", "run.yaml", *CONFIGS})
    for repo in here.repos.values():
        for branch in repo.branches:
            for path, content in repo.files(branch).items():
                search(f"pushed {path}", content)
    for body in (*here.received, *here.objects.values(), *(request.encode() for request in here.requests)):
        search("request", body)
    assert not search.found
    assert search.count > 5000 and outputs > 60, (search.count, outputs)
    counts = f"{search.count} for {len(PLANTED)} secrets, {search.size} bytes, {outputs} commands"
    record_testsuite_property("searches", counts)


# ---- in Python ----


def test_arguments_and_destinations_do_not_show_the_token(planted):
    @dataclass
    class Mine(MaxSupArgumentsMixin, TrainingArguments):  # whose generated `repr` overrides that of transformers
        note: str = field(default="")

    for kind in (MaxSupTrainingArguments, Mine):
        args = kind(
            "out", hub_token=FLAGS[0], run_name=LOOKS, use_cpu=True, report_to=[], lr_scheduler_kwargs={"a": [LOOKS]}
        )
        assert args.hub_token == FLAGS[0] == copy.deepcopy(args).hub_token
        assert copy.deepcopy(args).save_strategy is args.save_strategy  # an enum of texts
        torch.save(args.__dict__, "args.bin")
        shown = [repr(args), str(args), str(args.to_dict()), args.to_json_string(), str(args.to_sanitized_dict())]
        written = [pickle.dumps(vars(args)), (planted / "args.bin").read_bytes()]
        assert not any(value in text for text in shown[2:] for value in (FLAGS[0], LOOKS))
        assert not any(FLAGS[0] in text for text in shown) and not any(FLAGS[0].encode() in each for each in written)
        assert LOOKS not in str(args.__getstate__()) and args.lr_scheduler_kwargs == {"a": [LOOKS]}
        args.hub_token = FLAGS[1]
        assert FLAGS[1] not in repr(args)
    to = Destination("me/tiny", FLAGS[2])
    assert to.token == FLAGS[2] and FLAGS[2] not in f"{to} {to!r} {vars(to)}"


def test_no_override_of_a_user_takes_a_token_to_the_hub(planted, here, monkeypatch):  # noqa: F811
    class Careless(MaxSupTrainer):
        def create_model_card(self, **kwargs):
            folder = planted / "out"
            (folder / "README.md").write_text(f"# Made with {self.args.hub_token}\n")

    monkeypatch.setattr(endpoints, "TOKENS", {FLAGS[0]: ("me", "write")})
    args = MaxSupTrainingArguments("out", hub_token=FLAGS[0], use_cpu=True, report_to=[], push_to_hub=True)
    with pytest.raises(PushError, match=r"^README.md contains a token or a key, so nothing was pushed") as caught:
        Careless(tiny.vit(), args).push_to_hub()
    assert FLAGS[0] not in str(caught.value) and set(here.repos["me/out"].files("main")) == {".gitattributes"}


def test_files_streams_logs_and_tracebacks_are_masked(planted, capsys, caplog):
    with replacing(planted / "text.json") as unfinished:
        unfinished.write_text(json.dumps({"key": LOOKS}))
    assert json.loads((planted / "text.json").read_text()) == {"key": "<token>"}
    with pytest.raises(ValueError, match=r"state.bin.* would contain a token"), replacing(planted / "state.bin") as state:
        state.write_bytes(b"\xff\xfe" + LOOKS.encode())
    assert not (planted / "state.bin").exists()

    @masked_output()
    def fails():
        print("begin", LOOKS)
        sys.stderr.writelines([f"{LOOKS}\n"])
        try:
            raise KeyError(LOOKS)
        except KeyError:
            logging.getLogger("somebody").exception("failed with %s", LOOKS)
        raise RuntimeError(f"no access with {LOOKS}")

    with pytest.raises(SystemExit) as stop:
        fails()
    printed = capsys.readouterr()
    assert stop.value.code == 1 and LOOKS not in printed.out + printed.err + caplog.text
    assert "RuntimeError: no access with <token>" in printed.err and "KeyError: '<token>'" in caplog.text


def test_an_error_without_secrets_is_raised_as_it_is(planted):
    @masked_output()
    def fails():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fails()


def test_a_script_masks_its_traceback(planted, capsys):
    with pytest.raises(SystemExit):
        run.main(lambda argv: {}[LOOKS])
    printed = capsys.readouterr().err
    assert "KeyError: '<token>'" in printed and LOOKS not in printed


def test_a_comparison_with_a_token_in_its_flags_is_continued(planted):
    plan = Plan("text-classification", {"maxsup": {}}, (0,), flags=("--run_name", LOOKS))
    finished = planted / "two" / "runs" / "maxsup-seed0"
    (planted / "two").mkdir()
    keep_plan(planted / "two", plan)
    finished.mkdir(parents=True)
    (finished / "details.json").write_text("{}")
    keep_plan(planted / "two", plan)
    assert load_plan(planted / "two").flags == ("--run_name", "<token>")


# ---- what is secret, and what is not ----


def test_of_all_flags_only_that_of_the_token_is_secret():
    flags = [name for action in HfArgumentParser([MaxSupTrainingArguments])._actions for name in action.option_strings]
    assert {flag for flag in flags if is_secret_flag(flag)} == {"--hub_token", "--hub-token"}
    for name in ("--eos_token", "--pad_token", "--max_new_tokens", "--tokenizer_name", "--hub_model_id", "--hub", "-h"):
        assert not is_secret_flag(name)


def test_spellings_of_the_flag_and_of_the_key(monkeypatch):
    for flag in (*MISSPELLED, ["--hub_token", WRONG], [f"--hub-token='{WRONG}'"]):
        monkeypatch.setattr(secrets, "_kept", set())
        keep_flags(["train", *flag, "--seed", "1"])
        assert masked(f"a {WRONG} b") == "a <token> b", flag
        assert WRONG not in " ".join(masked_words(["train", *flag])) and masked_words(["--seed", "1"]) == ["--seed", "1"]
    for name, text in CONFIGS.items():
        monkeypatch.setattr(secrets, "_kept", set())
        keep_settings(text)
        assert masked(f'"{WRONG}"') == '"<token>"', name


def test_stored_keys_and_variables(planted, monkeypatch):
    for name in OTHERS:
        monkeypatch.setenv(name, LONG)
        assert masked(f"a {LONG} b") == "a <token> b", name
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_PASSWORD", "postgres")  # a word, which files may have
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", LONG)
    assert masked(f"postgres {LONG}") == f"postgres {LONG}"
    (planted / "netrc").write_text(f"machine api.wandb.ai login user password {LONG}\n")
    monkeypatch.setenv("NETRC", str(planted / "netrc"))
    assert masked(LONG) == "<token>"
    (planted / "netrc2").write_text("password")
    (planted / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv("NETRC", str(planted / "netrc2"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(planted / "binary"))
    assert masked(LONG) == LONG


@pytest.mark.parametrize("text", TEXTS)
def test_looks_of_secrets(text, planted):
    (planted / "file").write_bytes(b"\xff" * 100 + text.encode())
    assert TEXTS[text] not in masked(text) and has_secret(planted / "file")


def test_spellings_of_a_secret_in_files(planted, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", 'a"b&c/d\\e ü')
    for text in (json.dumps('a"b&c/d\\e ü'), "a&quot;b&amp;c/d\\e ü", "a%22b%26c%2Fd%5Ce%20%C3%BC", 'a"b&c/d\\e ü'):
        (planted / "file").write_text(f"x {text} y", encoding="utf-8")
        assert "<token>" in masked(f"x {text} y") and has_secret(planted / "file")
    for text in ("https://me:password@example.org", "wandb_v1_" + "a" * 20, "api_org_" + "a" * 34, f"x{'=' * 50}{LOOKS}"):
        (planted / "file").write_bytes(b"\xff" * 100 + text.encode())
        assert "<token>" in masked(text) and has_secret(planted / "file")
    harmless = (
        "hf_hub_download(maxsup_hf_comparison_long_name)",
        "https://a.org/b:c@d",
        "ssh://git@github.com/a",
        "true",
        "",
    )
    for text in (*harmless, "https://a.org:80/?a=b@c", "f(hub_token=my_long_variable_name)", "?token=short"):
        (planted / "file").write_text(text)
        assert masked(text) == text and not has_secret(planted / "file")


def test_paths_and_host_are_left_out_of_what_is_public(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "machine-7")
    for text, expected in {
        '{"best": "/tmp/out/checkpoint-5"}': '{"best": "checkpoint-5"}',
        "see file:///home/me/a.csv, and C:\\Users\\me\\b.csv": "see a.csv, and b.csv",
        "in /home/me or /nvme0/me/a.csv": "in folder or a.csv",
        "https://example.org/home/me and/or train/data /database": "https://example.org/home/me and/or train/data /database",
    }.items():
        assert public_text(text) == expected
    settings = {"file": "/team/me/my data/a.csv", "more": ["D:\\me\\b.csv", "machine-7", 1e-5, None], "task": "a/b"}
    assert public_values(settings) == {"file": "a.csv", "more": ["b.csv", "host", 1e-5, None], "task": "a/b"}
    assert without_host("machine-7.local, machine-70") == "host.local, machine-70"
