"""What the test Hub stores: repositories in memory with their branches, and large files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tests.hub.xet import XetStore


@dataclass
class Repo:
    """A repository: a list of commits for each branch. A commit is its sha, its title and all files by path. Pull requests
    are branches, and have an author."""

    private: bool
    branches: dict[str, list[tuple[str, str, dict[str, bytes]]]] = field(default_factory=dict)
    authors: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> dict[str, bytes]:
        if revision in self.branches:
            return self.branches[revision][-1][2]
        return next(files for commits in self.branches.values() for sha, _, files in commits if sha == revision)

    def head(self, revision: str) -> str:
        return self.branches[revision][-1][0] if revision in self.branches else revision

    def has(self, revision: str) -> bool:
        return revision in self.branches or any(revision == c[0] for cs in self.branches.values() for c in cs)


@dataclass
class Storage:
    """The state of a Hub.

    Attributes:
        xet: store of large files, for clients that have hf_xet and use it; `None` if large files are sent over LFS.
        repos: id -> `Repo`.
        objects: LFS objects by sha256.
        url: address of the Hub.
    """

    xet: XetStore | None = None
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def commit(self, repo: Repo, branch: str, title: str, files: dict[str, bytes]) -> str:
        commits = repo.branches.setdefault(branch, [])
        sha = hashlib.sha1(f"{id(repo)}{branch}{len(commits)}{title}".encode()).hexdigest()
        commits.append((sha, title, files))
        return sha


def git_oid(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
