"""The files that describe the repository to GitHub and to those who cite it agree with the rest of it."""

import re
from pathlib import Path

import pytest
import yaml

from maxsup_hf.losses.maxsup import CITATION

ROOT = Path(__file__).parents[1]


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_workflow_tests_every_supported_python():
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert read(".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python-version"] == supported


@pytest.mark.parametrize("job", ["lint", "tests"])
def test_the_workflow_runs_what_a_change_must_pass(job):
    required = (ROOT / ".ci" / "run").read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [step["run"] for step in read(".github/workflows/ci.yml")["jobs"][job]["steps"] if "run" in step]
    assert len(commands) >= 2 and [command for command in commands if command not in required] == []


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_has_unique_ids(name):
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert ids and len(ids) == len(set(ids))


def test_the_citation_is_the_one_of_the_loss():
    paper = read("CITATION.cff")["preferred-citation"]
    fields = dict(re.findall(r"(\w+)=\{(.*?)\},?\n", CITATION))
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert (paper["title"], authors, str(paper["year"])) == (fields["title"], fields["author"], fields["year"])
    assert paper["collection-title"] == fields["booktitle"]
    assert paper["identifiers"][0]["value"] == fields["note"]
