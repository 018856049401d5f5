"""The examples in the docstrings of the public names run, and print what they say."""

import doctest
import inspect

import pytest

import maxsup_hf
from maxsup_hf.losses import Loss, _registry

PUBLIC = [getattr(maxsup_hf, name) for name in maxsup_hf.__all__]
OF_LOSSES = [Loss, *(public for public in PUBLIC if public.__module__.startswith("maxsup_hf.losses"))]


@pytest.mark.parametrize("public", OF_LOSSES, ids=lambda public: public.__name__)
def test_example(public, monkeypatch):
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))  # an example registers a loss
    module = inspect.getmodule(public)
    found = doctest.DocTestFinder(recurse=False).find(public, module=module, globs={})  # an example imports what it needs
    tests = [test for test in found if test.examples]
    assert any(example.want for test in tests for example in test.examples), "a docstring without an example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
