"""Fronts in repositories of the Hugging Face hub, one in each: `pareto.json`, and a card that says what it holds."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from dato.errors import DatoError, first_line
from dato.front import FILE, Front
from dato.hub.card import CARD, REPO, card_of, without_places
from dato.utils.files import dumps, read_text, write_atomic

MOST = 32 * 2**20  # bytes of a file that is read; the largest fronts have a few hundred thousand
_REVISION = re.compile(r"[\w./-]+")


def is_name(text: str) -> bool:
    """Whether text looks like a front on the hub: user/name, or user/name@revision."""
    repo_id, at, revision = text.partition("@")
    # A missing file is a missing file; nobody calls a repository x.json.
    known = REPO.fullmatch(repo_id) is not None and not repo_id.endswith(".json")
    return known and (not at or _REVISION.fullmatch(revision) is not None)


def fetch(
    name: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The place in the hub's cache of a front's file, after downloading it if need be.

    Args:
        name: user/name, or user/name@revision.
        revision: A branch, tag or commit; None: the main branch.
        subfolder: Of the repository.
        token: See `huggingface_hub.hf_hub_download`, and for all that follows.
        cache_dir: Where the cache is.
        local_files_only: Look into the cache only.
        force_download: Download what the cache has, too.

    Raises:
        DatoError: if it cannot be had; the message says why, and that there is no such file or folder either.
    """
    repo_id, _, wanted = name.partition("@")
    if wanted and revision is not None:
        raise DatoError(f"{name} names a revision, and revision={revision!r} another place; give one of them")
    revision = wanted or revision
    try:
        path = Path(
            hf_hub_download(
                repo_id,
                FILE,
                revision=revision,
                subfolder=subfolder,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                library_name="dato",
            )
        )
    # Beside the hub's own errors these are those of an HTTP library, which has changed between its versions.
    except Exception as error:
        why = _why_not_loaded(error, repo_id, revision, subfolder, local_files_only)
        raise DatoError(f"there is no file or folder {name!r}, and it cannot be had from the hub: {why}") from error
    if path.stat().st_size > MOST:
        raise DatoError(f"{name}: {FILE} has more than {MOST >> 20} MiB: that is no front")
    return path


def save_front(front: Front, folder: str | Path, repo_id: str | None = None, *cards: str | None) -> str:
    """Write what would be shared: the front's file and its card. A card that somebody has edited stays as it is.

    Args:
        front: What is shared.
        folder: Where to.
        repo_id: What the card calls it; None: the folder's name.
        *cards: The first that was edited is written, if there is none in the folder.

    Returns:
        The text of the card.

    Raises:
        DatoError: if the place cannot be written to, the card there is not text, or the id cannot be one.
    """
    folder = Path(folder)
    if repo_id is not None:
        _check(repo_id)
    front = without_places(front)
    present = read_text(folder / CARD) if (folder / CARD).exists() else None
    text = card_of(front, repo_id or folder.resolve().name, present, *cards)
    write_atomic(folder / FILE, dumps(front.to_dict()) + "\n")
    if text != present:
        write_atomic(folder / CARD, text)
    return text


def push_front(
    front: Front,
    repo_id: str,
    *,
    card: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a front and its card, making the repository if there is none. An edited card there stays as it is.

    Args:
        front: What is shared.
        repo_id: user/name; a name alone is one of the user who is logged in.
        card: An edited card to upload instead.
        private: Whether a new repository is; None: as the account or organisation has it.
        token: Instead of the login's.
        commit_message: None: "Upload front with dato".
        revision: The branch; made if there is none. None: the main branch.
        create_pr: Ask for it to be merged instead.

    Returns:
        The address of the commit or pull request.

    Raises:
        DatoError: if the id cannot be one, a pull request is to be to a branch, or the hub cannot be reached or
            refuses.
    """
    _check(repo_id)
    if create_pr and revision not in (None, "main"):
        raise DatoError(f"create_pr=True asks for a merge into the main branch; leave out revision={revision!r}")
    api = HfApi(token=token, library_name="dato")
    with _pushing(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision not in (None, "main") and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "front"
        present = None
        with _pushing(repo_id):
            try:
                present = api.hf_hub_download(repo_id, CARD, revision=revision, cache_dir=Path(place) / "cache")
            except LocalEntryNotFoundError:  # the hub did not answer
                raise
            except EntryNotFoundError:
                pass
        save_front(front, folder, repo_id, card, None if present is None else read_text(present))
        additions = [CommitOperationAdd(name, folder / name) for name in (FILE, CARD)]
        message = commit_message or "Upload front with dato"
        with _pushing(repo_id):
            # One commit, so that nobody ever loads a front that its card is not about.
            done = api.create_commit(repo_id, additions, commit_message=message, revision=revision, create_pr=create_pr)
        return done.pr_url or str(done)


def _check(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DatoError(f"{repo_id!r} cannot be a repository's id: {first_line(error)}") from None


def _why_not_loaded(
    error: Exception, repo_id: str, revision: str | None, subfolder: str | None, local_files_only: bool
) -> str:
    if isinstance(error, GatedRepoError):
        return f"its owner wants to be asked: do so at https://huggingface.co/{repo_id} and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "it has no such repository, or a private one; check the name, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}"
    if isinstance(error, LocalEntryNotFoundError):
        if local_files_only:
            return "it is not in the cache, and local_files_only=True looks nowhere else"
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE is set; unset it to download"
        return f"it is not in the cache, and the hub did not send it: {_said(error.__cause__ or error)}"
    if isinstance(error, EntryNotFoundError):
        return f"{repo_id} has no {FILE if subfolder is None else f'{subfolder}/{FILE}'}: it holds no front of dato's"
    return _said(error)


def _said(error: BaseException) -> str:
    """An exception's message on one line: of the hub's own all of it, for the first line is but the status."""
    return " ".join(str(error).split()) if isinstance(error, HfHubHTTPError) else first_line(error)


@contextlib.contextmanager
def _pushing(repo_id: str) -> Iterator[None]:
    """Within the block, which only asks the hub for something, its errors become one line."""
    try:
        yield
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set; unset it to upload"
        elif isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
            why = f"the hub lets nobody in who may not write there ({_said(error)}); log in with `hf auth login`"
        else:
            why = _said(error)
        raise DatoError(f"cannot share {repo_id}: {why}") from error
