"""What a release holds. `tests/release_check.py` installs it too, and trains."""

import tarfile
import zipfile
from email.parser import HeaderParser

import pytest
from packaging.specifiers import SpecifierSet

from tests.release_check import ROOT, build, constraints, run


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    for name in ("build", "hatchling", "twine"):
        pytest.importorskip(name, reason="needs pip install -e '.[release]'")
    return build(tmp_path_factory.mktemp("release"), "--no-isolation")


def files():
    """Those of the package: neither what Python compiled nor what a clone does not have."""
    return {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "maxsup_hf").rglob("*.*") if "__pycache__" not in path.parts
    }


def test_the_wheel_is_the_package_and_its_data(release):
    names = zipfile.ZipFile(release[1]).namelist()
    assert {name for name in names if ".dist-info/" not in name} == files()
    assert {"maxsup_hf/py.typed", "maxsup_hf/hub/card.md.jinja", "maxsup_hf/metrics/maxsup_geometry/README.md"} <= set(names)


def test_the_sdist_builds_it(release):
    """`build` makes the wheel out of the sdist; beside the package it has what its users read."""
    with tarfile.open(release[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert files() | {"README.md", "CHANGELOG.md", "LICENSE", "constraints.txt", "pyproject.toml"} <= names


def test_metadata(release):
    wheel = zipfile.ZipFile(release[1])
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    found = HeaderParser().parsestr(wheel.read(metadata).decode())
    assert (found["Name"], found["License-Expression"]) == ("maxsup-hf", "Apache-2.0")
    assert found["Description-Content-Type"] == "text/markdown" and found["License-File"] == "LICENSE"
    named = [line.rpartition(" ")[2] for line in found.get_all("Classifier") if " :: Python :: 3." in line]
    assert named == ["3.10", "3.11", "3.12", "3.13"] and SpecifierSet(found["Requires-Python"]).contains("3.10")
    points = wheel.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "maxsup-hf = maxsup_hf.cli:main" in points


def test_the_version_is_in_the_changelog(release):
    version = release[1].name.split("-")[1]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_ends_of_the_range_of_transformers():
    assert constraints("lowest") == "torch==2.13.0\ntransformers==5.17.*\n"
    assert constraints("newest") == "torch==2.13.0\n"
    assert "transformers==5.2" in constraints("pinned")


def test_the_check_says_what_failed():
    with pytest.raises(SystemExit, match="status 3\n\nno\n"):
        run("sh", "-c", "echo no >&2; exit 3", cwd=ROOT)
