"""The files of a push: chosen, searched for secrets, and with a card that names the repository.

A push sends a temporary folder with links to the files of the model, so that the model's own folder is not changed. Which
files are left out, and which texts are rewritten, is decided here alone, and every byte is searched for secrets.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from maxsup_hf.hub.card import card_for_repository
from maxsup_hf.hub.record import RECORD
from maxsup_hf.hub.retries import PushError
from maxsup_hf.output.files import replacing, write_json
from maxsup_hf.output.messages import listed
from maxsup_hf.output.private import public_text, public_values, without_host
from maxsup_hf.output.secrets import has_secret
from maxsup_hf.output.weights import LOSS_STATE_NAME, safetensors_error

# `_*` and checkpoints as in transformers. Pickles run code when they are loaded, and only resuming needs them. Logs of
# TensorBoard and measurements of codecarbon name the machine. Predictions repeat the user's test data: they are tables
# with any name, and masks in a folder with the name of the table.
NOT_PUSHED = (
    "_*", "checkpoint-*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", ".cache/*", ".git/*", ".env*", "*/.env*",
    "*.unfinished", "*tfevents*", "predictions/*",
)  # fmt: skip
TABLES = (".csv", ".jsonl", ".parquet")
WEIGHTS = (".safetensors", ".distcp")  # of what is pushed; shards of FSDP have the latter
EMISSIONS = "emissions.csv"
RESULTS = ("*per_class.csv", EMISSIONS)  # tables of this library and of codecarbon that are not predictions
WITH_PATHS = ("README.md", RECORD, "config.json", "tokenizer_config.json")
REPORTS = ("report.html", "analysis.json", "comparison.json", "plan.json")  # in any folder beside the model
SETTINGS = ("config.yaml", "adapter_config.json", "trainer_state.json")  # in which a text that begins with / is a path

logger = logging.getLogger(__name__)


@contextmanager
def staged(folder: str | Path, repo_id: str, checkpoint: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder with the files to push.

    Args:
        folder: of a saved model.
        repo_id: the repository, which the card names.
        checkpoint: push the folder as a complete checkpoint too, pickles included, into this folder of the repository. Its
            files are pushed as they are, because a manifest has their hashes.

    Raises:
        PushError: a file contains a token or a key, the card's metadata are invalid, or a file cannot be read or written.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        try:
            _prepare(stage, folder, repo_id, checkpoint)
        except PushError:
            raise
        except (ValueError, OSError) as error:
            raise PushError(str(error).replace(str(stage), str(folder))) from error
        yield stage


def _prepare(stage: Path, folder: Path, repo_id: str, checkpoint: str | None) -> None:
    names, tables = files_to_push(folder)
    if tables:
        logger.info("not pushed, because tables may be predictions, which repeat the test data: %s", listed(tables))
    link_files(folder, stage, names)
    if checkpoint is not None:
        link_files(folder, stage / checkpoint, _files(folder, left_out=("_*",)))
    card_for_repository(stage, repo_id)
    _remove_paths(stage)
    (stage / EMISSIONS).unlink(missing_ok=True)  # the card was written from it
    _search_for_secrets(stage)


def files_to_push(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the files of a model that are pushed, and of the tables that are not."""
    names = _files(folder, NOT_PUSHED)
    tables = [name for name in names if name.lower().endswith(TABLES) and not _matches(name, RESULTS)]
    with_masks = tuple(f"{name.rpartition('.')[0]}/" for name in tables)
    pushed = [name for name in names if name not in tables and not name.startswith(with_masks)]
    if LOSS_STATE_NAME in pushed and _is_empty(folder / LOSS_STATE_NAME):
        pushed.remove(LOSS_STATE_NAME)
    return pushed, tables


def check_weights(folder: Path) -> None:
    """Check that a push would bring the weights of the model.

    Raises:
        PushError: there are none, or a file of them is damaged.
    """
    weights = [name for name in files_to_push(folder)[0] if name.endswith(WEIGHTS) and name != LOSS_STATE_NAME]
    if not weights:
        raise PushError(
            f"{folder} has no weights as safetensors (pickles are not pushed): save the model with save_pretrained() first"
        )
    for name in weights:
        error = safetensors_error(folder / name) if name.endswith(".safetensors") else None
        if error is not None:
            raise PushError(f"{folder}: {name} is damaged ({error}), so nothing was pushed: save the model again")


def _files(folder: Path, left_out: Iterable[str]) -> list[str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if not _matches(name, left_out)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def link_files(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Link files of a folder into another one, or copy them where the system has no links."""
    for name in names:
        path, link = folder / name, target / name
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(path.resolve())
        except OSError:
            shutil.copy2(path, link)


def size(folder: str | Path) -> int:
    """Bytes in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _is_empty(path: Path) -> bool:
    """Whether the loss has learned nothing that is kept in this file."""
    try:
        with safe_open(path, "pt") as file:
            return not file.keys()
    except SafetensorError:  # a damaged file is pushed as it is
        return False


def _remove_paths(stage: Path) -> None:
    reports = [path for path in stage.rglob("*") if path.name in REPORTS]
    for path in (*(stage / name for name in WITH_PATHS), *reports):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        public = _public_card(text) if path.name == "README.md" else public_text(text)
        if public != text:
            with replacing(path) as unfinished:
                unfinished.write_text(public, encoding="utf-8")

    for name in SETTINGS:
        path = stage / name
        if not path.is_file():
            continue
        read = json.loads if path.suffix == ".json" else yaml.safe_load
        try:
            values = read(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            raise PushError(f"{name} cannot be read, so nothing was pushed: {' '.join(str(error).split())}") from error
        if public_values(values) != values:
            _write_settings(path, public_values(values))


def _write_settings(path: Path, values: Any) -> None:
    if path.suffix == ".json":
        write_json(path, values)
        return
    with replacing(path) as unfinished:
        unfinished.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _public_card(text: str) -> str:
    """A card without paths and host name in its text. A path in its metadata is refused by the Hub, and so shows."""
    metadata = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    start = metadata.end() if metadata else 0
    return text[:start] + without_host(public_text(text[start:]))


def _search_for_secrets(stage: Path) -> None:
    found = [str(path.relative_to(stage)) for path in sorted(stage.rglob("*")) if path.is_file() and has_secret(path)]
    if found:
        raise PushError(
            f"{', '.join(found)} contains a token or a key, so nothing was pushed: remove it there, and revoke it if the "
            "file was published before"
        )
