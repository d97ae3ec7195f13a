"""Names on the Hugging Face hub: ids of repositories, and the files that a repository of a front has."""

from __future__ import annotations

import re

FRONT_FILE = "pareto.json"  # in a repository, and in a run's folder
CARD_FILE = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
_REVISION = re.compile(r"[\w./-]+")
_SNAPSHOT = re.compile(r"[\\/]models--([^\\/]+)[\\/]snapshots[\\/][^\\/]+[\\/]?$")


def is_repository(text: str) -> bool:
    """Return whether a text has the form user/name."""
    return _REPOSITORY.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Return whether a text can name a front on the hub: user/name or user/name@revision."""
    repo_id, at, revision = text.partition("@")
    # "runs/x.json" is a file that is missing: repositories have no such names.
    valid = is_repository(repo_id) and not repo_id.lower().endswith(".json")
    return valid and (not at or _REVISION.fullmatch(revision) is not None)


def cached_repository(path: str) -> str | None:
    """Return user/name if a path is a model's folder in the hub's cache, else None."""
    snapshot = _SNAPSHOT.search(path)
    return snapshot[1].replace("--", "/") if snapshot else None
