"""The examples in docstrings run, and print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import maxsup_hf
from maxsup_hf.losses import Loss, _registry
from maxsup_hf.trainer.callbacks import FeatureGeometryCallback, WrongRowsCallback

PUBLIC = [*(getattr(maxsup_hf, name) for name in maxsup_hf.__all__), Loss, FeatureGeometryCallback, WrongRowsCallback]
ROOT = Path(maxsup_hf.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_every_public_name_has_an_example(public):
    (found,) = doctest.DocTestFinder(recurse=False).find(public)
    assert any(example.want for example in found.examples)


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_module(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))  # an example registers a loss
    found = doctest.DocTestFinder().find(import_module(module), globs={})  # an example imports what it needs
    tests = [test for test in found if test.examples]
    assert tests
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
