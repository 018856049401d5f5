"""Find and mask secrets (tokens of the Hub, keys of trackers) in what is written and printed.

A value is secret if it was given to a flag for tokens in any spelling, stands in a variable such as HF_TOKEN or
WANDB_API_KEY, is the stored token of the Hub or a password of ~/.netrc, or looks like a token.
"""

from __future__ import annotations

import difflib
import html
import json
import mmap
import netrc
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

MASK = "<token>"
SHORTEST = 6  # characters; shorter values are found in too many words
LONGEST = 1000
NO_VALUES = ("false", "true", "null", "none")
VARIABLE = re.compile(
    r"(HF|HUGGING_?FACE(HUB)?|WANDB|COMET|MLFLOW|NEPTUNE|CLEARML|SWANLAB|TRACKIO|CODECARBON|DAGSHUB|DVC|DATABRICKS|AWS|AZURE|"
    r"GOOGLE|KAGGLE)_(\w+_)?(TOKEN|KEY|SECRET|PASSWORD|CONNECTION_STRING)",
    re.IGNORECASE,
)
# A variable of any other program; its value is masked if it is too long to be a word.
OTHER_VARIABLE = re.compile(r"(\w+_)?(TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_KEY|SECRET_KEY)", re.IGNORECASE)
SHORTEST_OF_OTHERS = 16
# What a token begins with, and what it looks like from there.
LOOKS = {
    "hf_": r"(?<![A-Za-z0-9])hf_(?:(?:oauth|jwt)_[\w.-]{16,}|[A-Za-z0-9]{16,})",
    "api_org_": r"(?<![A-Za-z0-9])api_org_[A-Za-z0-9]{16,}",
    "wandb_v1_": r"(?<![A-Za-z0-9])wandb_v1_\w{16,}",
    "eyJhcGlf": r"(?<![A-Za-z0-9+/])eyJhcGlf[A-Za-z0-9+/_-]{40,}=*",  # of Neptune, {"api_… in base64
    "://": r"(?<=://)(?:[^/\s:@\"'<>?#]*:[^/\s@\"'<>?#]+|[\w.%-]{20,})(?=@)",  # user and password, or a token alone
    "token=": r"(?:(?<=[?&]token=)|(?<=[?&]access_token=))[\w.%~+-]{16,}",
    "api_key=": r"(?<=[?&]api_key=)[\w.%~+-]{16,}",
    "sig=": r"(?<=[?&]sig=)[\w.%~+-]{16,}",  # of Azure
}
FLAG_ENDS = ("hubtoken", "hftoken", "accesstoken", "authtoken", "apikey", "password", "secret")

_kept: set[str] = set()


class Secret(str):
    """A string that the client can send, but that no `repr` shows. Its pickle is that of `None`."""

    def __repr__(self) -> str:
        return repr(MASK)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self


def secret(value: str | None) -> Secret | None:
    """Mask this value from now on, and return it as a `Secret`; an empty one as `None`."""
    if not value:
        return None
    if len(value) >= SHORTEST and value.lower() not in NO_VALUES:
        _kept.add(str(value))
    return Secret(value)


# ---- flags and files of settings ----


def is_secret_flag(name: str) -> bool:
    """Whether a flag is for a token, misspelled or abbreviated too: `--hub_token`, `--hub-tok`, `--hubtoken`."""
    word = re.sub("[^a-z]", "", name.lower())
    abbreviated = len(word) > len("hub") and "hubtoken".startswith(word)
    return abbreviated or word.endswith(FLAG_ENDS) or difflib.SequenceMatcher(None, "hubtoken", word).ratio() >= 0.75


def keep_flags(words: Sequence[str]) -> None:
    """Mask the values that a command line gives to flags for tokens, alone or in JSON, from now on."""
    for _, _, value in _secret_places(words):
        secret(value.strip("'\" "))
    for word in words:
        if "{" in word:
            keep_settings(word)


def masked_words(words: Sequence[str]) -> list[str]:
    """A command line without its secrets, including those that are too short to be masked elsewhere."""
    found = list(words)
    for index, before, _ in _secret_places(words):
        found[index] = before + MASK
    return [masked(word) for word in found]


def without_hub_token(words: Sequence[str]) -> list[str]:
    """A command line without `--hub_token` and its value."""
    left_out = set()
    for index, before, _ in _secret_places(words):
        flag = before or words[index - 1]
        if flag.rstrip("=").replace("-", "_") == "__hub_token":
            left_out |= {index} if before else {index - 1, index}
    return [word for index, word in enumerate(words) if index not in left_out]


def keep_settings(text: str) -> None:
    """Mask the values of keys for tokens in YAML or JSON, which need not be valid, from now on."""
    for key, value in re.findall(r"""["']?([\w-]+)["']?\s*[:=][\s>|"'\[{(+-]*([^\s"',\]})#]+)""", text):
        if is_secret_flag(key):
            secret(value.rstrip(":"))
            secret(value)
    with suppress(yaml.YAMLError, RecursionError):
        _keep_values(yaml.safe_load(text), is_secret=False)


def _keep_values(value: Any, is_secret: bool) -> None:
    """Mask what stands under a key for tokens in settings that were read."""
    if isinstance(value, dict):
        for key, item in value.items():
            _keep_values(item, is_secret or is_secret_flag(str(key)))
    elif isinstance(value, list):
        for item in value:
            _keep_values(item, is_secret)
    elif is_secret and isinstance(value, str):
        secret(value)


def _secret_places(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Index of the word with each value, what stands before the value in it, and the value: of `--hub_token X` the second
    word, nothing and `X`, and of `--hub_token=X` the word itself, `--hub_token=` and `X`."""
    for index, word in enumerate(words):
        before, flag = re.match(r"([-–—]*([\w-]*)[=:]?)", word).groups()  # type: ignore[union-attr]
        if not is_secret_flag(flag):
            continue
        if before.endswith(("=", ":")):
            yield index, before, word.removeprefix(before)
        elif word == before and before[0] in "-–—" and index + 1 < len(words) and not words[index + 1].startswith("--"):
            yield index + 1, "", words[index + 1]


# ---- masking ----


def masked(text: str) -> str:
    """A text with every secret replaced by `<token>`."""
    return _pattern(_known()).sub(MASK, text)


def mask_file(path: Path) -> None:
    """Replace the secrets in a file.

    Raises:
        ValueError: a file that is not text holds one.
    """
    if not has_secret(path):
        return
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} would contain a token or a key; it was not written") from None
    path.write_bytes(masked(text).encode("utf-8"))


def has_secret(path: str | Path) -> bool:
    """Whether a file contains a secret. It may be of any size: it is mapped, not read."""
    if os.path.getsize(path) == 0:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(value.encode()) >= 0 for value in _spellings(_known())):
            return True
        return any(_looks_secret(content, start.encode(), look) for start, look in LOOKS.items())


def _looks_secret(content: mmap.mmap, start: bytes, look: str) -> bool:
    """Whether a token of one kind is in a file. `find` is many times faster than a regular expression."""
    pattern = re.compile(look.encode())
    at = content.find(start)
    while at >= 0:
        if pattern.match(content, at, at + LONGEST) or pattern.match(content, at + len(start), at + LONGEST):
            return True
        at = content.find(start, at + 1)
    return False


def _known() -> frozenset[str]:
    """The values that are secret at this moment."""
    found = set(_kept)
    for name, value in os.environ.items():
        if VARIABLE.fullmatch(name):
            shortest = SHORTEST
        elif OTHER_VARIABLE.fullmatch(name):
            shortest = SHORTEST_OF_OTHERS
        else:
            continue
        if len(value) >= shortest:
            found.add(value)
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    stored = _stored(os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")))
    passwords = _netrc_passwords(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc"))  # W&B keeps its key there
    return frozenset(found | {value for value in (stored, *passwords) if len(value) >= SHORTEST})


@cache
def _stored(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        return ""


@cache
def _netrc_passwords(path: str) -> tuple[str, ...]:
    try:
        return tuple(password or "" for _, _, password in netrc.netrc(path).hosts.values())
    except (OSError, UnicodeError, netrc.NetrcParseError):
        return ()


@lru_cache(4)
def _spellings(values: frozenset[str]) -> tuple[str, ...]:
    """The values as they are written in plain text, JSON, HTML, a URL, and a `repr`, the longest first."""
    found = set()
    for value in values:
        found |= {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value)}
        found |= {quote(value, safe=""), repr(value)[1:-1]}
    return tuple(sorted(found, key=lambda each: (-len(each), each)))


@lru_cache(4)
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, _spellings(values)), *LOOKS.values()]))
