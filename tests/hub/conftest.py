"""A Hub for the tests. huggingface_hub reads the Hub's address when it is imported, so a test either runs its client in
another process, with `hub_environment`, or patches the constants of huggingface_hub."""

import os

import pytest

from tests.hub.server import Hub


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


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
