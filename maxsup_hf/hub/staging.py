"""The files of a push: chosen, searched for secrets, and with a card that names the repository.

A push sends a temporary folder with links to the files of the model, so that the model's own folder is not changed. Which
files are left out, and which texts are rewritten, is decided here alone, and every byte is searched for secrets.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open

from maxsup_hf.hub.card import card_for_repository
from maxsup_hf.hub.record import RECORD
from maxsup_hf.hub.retries import PushError
from maxsup_hf.output.files import replacing
from maxsup_hf.output.private import public_text, without_host
from maxsup_hf.output.secrets import has_secret
from maxsup_hf.output.weights import LOSS_STATE_NAME

# `_*` and checkpoints as in transformers. Pickles run code when they are loaded, and only resuming needs them. Logs of
# TensorBoard and measurements of codecarbon name the machine. Predictions repeat the user's test data.
NOT_PUSHED = (
    "_*", "checkpoint-*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", ".cache/*", ".git/*", "*.unfinished",
    "*tfevents*", "predictions.*", "predictions/*",
)  # fmt: skip
EMISSIONS = "emissions.csv"
WITH_PATHS = (
    "README.md", RECORD, "config.yaml", "config.json", "adapter_config.json", "tokenizer_config.json", "trainer_state.json",
)  # fmt: skip


@contextmanager
def staged(folder: str | Path, repo_id: str, checkpoint: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder with the files to push.

    Args:
        folder: of a saved model.
        repo_id: the repository, which the card names.
        checkpoint: push the folder as a complete checkpoint too, pickles included, into this folder of the repository. Its
            files are pushed as they are, because a manifest has their hashes.

    Raises:
        PushError: a file contains a token or a key, or the card's metadata are invalid.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        link_files(folder, stage)
        if checkpoint is not None:
            link_files(folder, stage / checkpoint, left_out=("_*",))
        try:
            card_for_repository(stage, repo_id)
        except ValueError as error:
            raise PushError(str(error).replace(str(stage), str(folder))) from error
        _remove_paths(stage)
        (stage / EMISSIONS).unlink(missing_ok=True)  # the card was written from it
        _search_for_secrets(stage)
        yield stage


def link_files(folder: Path, target: Path, left_out: Iterable[str] = NOT_PUSHED) -> None:
    """Link the files of a folder into another one, or copy them where the system has no links."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(fnmatch(name, pattern) for pattern in left_out):
            continue
        if name == LOSS_STATE_NAME and left_out is NOT_PUSHED and _is_empty(path):
            continue
        link = target / name
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
    for name in WITH_PATHS:
        path = stage / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        public = _public_card(text) if name == "README.md" else public_text(text)
        if public != text:
            with replacing(path) as unfinished:
                unfinished.write_text(public, encoding="utf-8")


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
