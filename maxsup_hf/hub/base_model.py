"""The Hub id of the model that a model was fine-tuned from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_hub_id(name: Any) -> bool:
    """Whether a name can be a repository of the Hub. The path of a folder that exists is not one."""
    if not isinstance(name, str) or not name or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_base_model(source: str | None) -> str | None:
    """The Hub id of a source of weights: itself, or that of the model which was saved in this folder.

    `None` if it is unknown. The path of a folder means nothing on another machine, and the Hub rejects it.
    """
    if not source:
        return None
    if is_hub_id(source):
        return source
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\]+snapshots", source)
    if cached:
        return "/".join(cached.groups())
    config = Path(source) / "config.json"
    if not config.is_file():
        return None
    name = json.loads(config.read_text(encoding="utf-8")).get("_name_or_path")
    return name if is_hub_id(name) else None
