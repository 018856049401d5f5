"""What README.md says to type runs, in the order in which it stands there, on small data and with few steps."""

import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizerFast, ViTImageProcessorPil

from maxsup_hf import MaxSupTrainer
from tests import HANGS, tiny
from tests.hub.conftest import hub, hub_environment  # noqa: F401
from tests.hub.server import Repo

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
LINES = [
    re.sub(r"\s+#.*", "", line)
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANIMALS = ["cat", "dog", "wolf"]
SHORT = {
    "train": ["--max_steps", "2", "--max_train_samples", "60", "--max_eval_samples", "30", "--disable_tqdm", "true"],
    "compare": ["--losses", "maxsup", "--seeds", "0", "--max_steps", "2", "--max_eval_samples", "30", "--jobs", "2"],
    "analyze": ["--images", "1", "--cache_dir", "cache"],
    "bench": ["--shapes", "8x5", "--linear_shapes", "8x4x5", "--rounds", "1", "--dtypes", "float32"],
    "push": [],
}
# One process, because importing transformers is most of what a short command does.
DRIVER = """
import json, os, sys
from maxsup_hf.cli import main
for variables, words in json.loads(sys.argv[1]):
    os.environ |= variables
    print("+", words, file=sys.stderr, flush=True)
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise
    for name in variables:
        del os.environ[name]
"""


def commands():
    """(variables, words behind `maxsup-hf`) of every line; an `accelerate launch` of a script counts as its task."""
    found = []
    for line in LINES:
        words = shlex.split(line.rpartition("&& ")[2])
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        words = words[len(variables) :]
        if words[:2] == ["accelerate", "launch"]:
            at = words.index("-m")
            words = ["maxsup-hf", "train", words[at + 1].rpartition(".")[2], *words[at + 2 :], "--dry_run", "true"]
        if words[0] == "maxsup-hf":
            found.append((variables, [*words[1:], *SHORT[words[1]]]))
        else:
            assert words[:2] == ["pip", "install"] or line.endswith("python -m pytest -n 2"), line
    return found


@pytest.fixture
def folder(tmp_path, hub):  # noqa: F811
    """What the README's reader has: photos, texts, a configuration, and models on the Hub."""
    for animal in ANIMALS:
        (tmp_path / "photos" / animal).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (20 * i, 9, 99)).save(tmp_path / "photos" / animal / f"{i}.png")
    texts = [f"word{i % 7} {animal}" for i in range(24) for animal in ANIMALS]
    table = Dataset.from_dict({"text": texts, "label": ANIMALS * 24})
    for split in ("train", "validation", "test"):
        table.to_parquet(tmp_path / f"{split}.parquet")
    (tmp_path / "run.yaml").write_text("num_train_epochs: 1\n")
    (own,) = (block for kind, block in BLOCKS if kind == "python" and "register_loss" in block)
    (tmp_path / "my_loss.py").write_text(own)
    names = dict(enumerate(ANIMALS))
    of_texts, of_pets = tmp_path / "of-texts", tmp_path / "of-pets"
    tiny.bert().save_pretrained(of_texts)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    BertTokenizerFast(tokenizer_object=words).save_pretrained(of_texts)
    tiny.vit(num_labels=3, id2label=names, label2id={n: i for i, n in names.items()}).save_pretrained(of_pets)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(of_pets)
    for name, source in (("sentence-transformers/all-MiniLM-L6-v2", of_texts), ("me/pets", of_pets)):
        repo = hub.repos[name] = Repo(private=False)
        hub.commit(repo, "main", "made", {path.name: path.read_bytes() for path in source.iterdir()})
    return tmp_path


def test_every_command(folder, hub, hub_environment):  # noqa: F811
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands())],
        cwd=folder, env=hub_environment, capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repos["me/digits"].files("main"))
    for page in ("compare-image-classification", "compare-text-classification", "analysis", "analysis-2"):
        assert (folder / "outputs" / page / "report.html").stat().st_size > 10_000


def test_before_and_after(tmp_path):
    """The lines with a + of its diff."""
    ((_, block),) = [(kind, block) for kind, block in BLOCKS if kind == "diff"]
    after = "\n".join(line[2:] for line in block.splitlines() if line.startswith("+ "))
    names = {"model": tiny.vit(), "train": tiny.rows(tiny.batch("vit", size=4))}
    exec(after.replace('"out"', repr(str(tmp_path))), names)
    assert type(names["trainer"]) is MaxSupTrainer and names["trainer"].args.loss == "maxsup"


def test_extras_are_there():
    extras = metadata("maxsup-hf").get_all("Provides-Extra")
    asked = {extra for line in LINES for extra in re.findall(r"\[(\w+)\]", line)}
    assert asked and asked <= set(extras)


def test_its_tables_of_results_are_the_committed_ones():
    """Lines with ± are those that `maxsup-hf compare` wrote."""
    written = "\n".join(path.read_text() for path in (ROOT / "model_cards" / "results").glob("*.md"))
    lines = [line for line in TEXT.splitlines() if line.startswith("|") and "±" in line]
    assert lines and all(line in written for line in lines)


def test_length():
    assert len(TEXT.splitlines()) < 250


@pytest.mark.parametrize("page", ["README.md", "model_cards/README.md", "examples/README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
