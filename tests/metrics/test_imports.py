import subprocess
import sys

import pytest

import maxsup_hf.metrics


def test_metrics_load_no_library_that_only_some_of_them_need():
    source = (
        "import sys, maxsup_hf.metrics\n"
        "heavy = {'transformers', 'datasets', 'evaluate', 'sklearn', 'matplotlib', 'imagecorruptions', 'torchmetrics'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", maxsup_hf.metrics.__all__)
def test_every_public_name_is_there(name):
    value = getattr(maxsup_hf.metrics, name)
    assert not callable(value) or value.__doc__
