"""A Hub for the tests. huggingface_hub reads the Hub's address when it is imported, so a test either runs its client in
another process, with `hub_environment` (which `tests.warm` can use too), or patches the constants of huggingface_hub."""

import os
import time
from types import SimpleNamespace

import huggingface_hub
import pytest

from maxsup_hf.hub.retries import Deadline
from tests.hub.server import Hub


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def here(hub, monkeypatch, tmp_path):
    """This process talks to `hub`; pauses are recorded instead of waited for."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    pauses = []
    monkeypatch.setattr(Deadline, "pause", lambda self, seconds: pauses.append(seconds))
    monkeypatch.setattr(_http, "time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None}))
    huggingface_hub.close_session()
    hub.pauses = pauses
    yield hub
    huggingface_hub.close_session()


@pytest.fixture
def hub_environment(hub, tmp_path):
    return environment(hub, tmp_path)


def environment(hub, folder):
    """Environment of a process whose Hub is `hub`, without the Hub settings of this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf_home"),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
