import subprocess
import sys

import pytest

import maxsup_hf


@pytest.mark.parametrize("name", maxsup_hf.__all__)
def test_every_public_name_is_there_and_described(name):
    assert getattr(maxsup_hf, name).__doc__


def test_the_list_of_names_is_whole():
    assert sorted(maxsup_hf._HOME) == maxsup_hf.__all__


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'maxsub'"):
        maxsup_hf.maxsub  # noqa: B018


def test_the_losses_need_no_transformers():
    source = "import sys; from maxsup_hf import create_loss, maxsup_loss; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0
