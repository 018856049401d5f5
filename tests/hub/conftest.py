"""A Hub of the tests' own. huggingface_hub reads its address when it is imported, so that what talks to it runs in a process
of its own, with `hub_environment`."""

import os

import pytest

from tests.hub.server import Hub


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub_environment(hub, tmp_path):
    """Environment of a process whose Hub is `hub`: nothing of the machine's own settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
