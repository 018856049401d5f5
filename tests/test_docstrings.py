"""The examples in the docstrings of the public names run, and print what they say."""

import doctest
import inspect

import pytest

import maxsup_hf
from maxsup_hf.losses import Loss, _registry
from maxsup_hf.trainer.callbacks import FeatureGeometryCallback

PUBLIC = [*(getattr(maxsup_hf, name) for name in maxsup_hf.__all__), Loss, FeatureGeometryCallback]


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_example(public, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))  # an example registers a loss
    module = inspect.getmodule(public)
    found = doctest.DocTestFinder(recurse=False).find(public, module=module, globs={})  # an example imports what it needs
    tests = [test for test in found if test.examples]
    assert any(example.want for test in tests for example in test.examples), "a docstring without an example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
