"""Download and upload fronts. A repository of the Hugging Face hub holds one front, `pareto.json`, and its card."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from dato.hub.card import choose_card
from dato.hub.names import CARD_FILE, FRONT_FILE
from dato.hub.paths import without_paths
from dato.utils.files import dumps, read_text, write_atomic

MAX_BYTES = 32 * 2**20  # largest file that is read; large fronts have a few hundred thousand bytes


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
    """Download a front's file, unless the hub's cache has it, and return its path in the cache.

    Args:
        name: user/name, or user/name@revision.
        revision: A branch, tag or commit. None: the main branch.
        subfolder: The folder inside the repository.
        token: A token, or False for none. None: that of the login. This and the arguments below are those of
            `huggingface_hub.hf_hub_download`.
        cache_dir: The cache's folder. None: the hub's own.
        local_files_only: Look into the cache only.
        force_download: Download the file even if the cache has it.

    Raises:
        DatoError: if the file cannot be downloaded. The message says why, and that no such file or folder exists here.
    """
    repo_id, _, revision_in_name = name.partition("@")
    if revision_in_name and revision is not None:
        raise DatoError(f"{name} names a revision, and so does revision={revision!r}; give one of them")
    revision = revision_in_name or revision
    try:
        path = Path(
            hf_hub_download(
                repo_id,
                FRONT_FILE,
                revision=revision,
                subfolder=subfolder,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                library_name="dato",
            )
        )
    # Errors of the HTTP library come here too, and versions of the hub's client use different libraries.
    except Exception as error:
        why = _why_not_loaded(error, repo_id, revision, subfolder, local_files_only)
        raise DatoError(f"there is no file or folder {name!r}, and it cannot be loaded from the hub: {why}") from error
    if path.stat().st_size > MAX_BYTES:
        raise DatoError(f"{name}: {FRONT_FILE} has more than {MAX_BYTES >> 20} MiB: that is no front")
    return path


def save_front(
    front: Mapping[str, Any], knee: int, folder: str | Path, repo_id: str | None = None, *cards: str | None
) -> str:
    """Write a front's file and its card to a folder, as they are shared. Keep a card that somebody has edited.

    Args:
        front: The front as a dictionary, see `Front.to_dict`.
        knee: The index of its knee in `front["front"]`.
        folder: Where to write.
        repo_id: The name in the card. None: the folder's name.
        *cards: Other cards. If the folder has no edited card, the first edited one of these is written.

    Returns:
        The text of the card.

    Raises:
        DatoError: if the folder cannot be written to, the card in it is not text, or `repo_id` is not valid.
    """
    folder = Path(folder)
    if repo_id is not None:
        _check_id(repo_id)
    front = {**front, "conditions": without_paths(front["conditions"])}
    present = read_text(folder / CARD_FILE) if (folder / CARD_FILE).exists() else None
    text = choose_card(front, knee, repo_id or folder.resolve().name, (present, *cards))
    write_atomic(folder / FRONT_FILE, dumps(front) + "\n")
    if text != present:
        write_atomic(folder / CARD_FILE, text)
    return text


def push_front(
    front: Mapping[str, Any],
    knee: int,
    repo_id: str,
    *,
    card: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a front and its card. Make the repository if it does not exist. Keep a card that somebody has edited.

    Args:
        front: The front as a dictionary, see `Front.to_dict`.
        knee: The index of its knee in `front["front"]`.
        repo_id: user/name, or the name alone for a repository of the user who is logged in.
        card: A card to upload instead of a new one, if somebody has edited it.
        private: Whether a new repository is private. None: the default of the account.
        token: A token. None: that of the login.
        commit_message: None: "Upload front with dato".
        revision: The branch, made if it does not exist. None: the main branch.
        create_pr: Open a pull request instead of changing the branch.

    Returns:
        The address of the commit or pull request.

    Raises:
        DatoError: if `repo_id` is not valid, a pull request is asked for on another branch than main, or the hub
            cannot be reached or refuses.
    """
    _check_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise DatoError(f"create_pr=True asks for a merge into the main branch; leave out revision={revision!r}")
    api = HfApi(token=token, library_name="dato")
    with _pushing(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision not in (None, "main") and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "front"
        present = _card_on_hub(api, repo_id, revision, Path(temporary) / "cache")
        save_front(front, knee, folder, repo_id, card, present)
        additions = [CommitOperationAdd(name, folder / name) for name in (FRONT_FILE, CARD_FILE)]
        message = commit_message or "Upload front with dato"
        with _pushing(repo_id):
            # One commit for both files: nobody may load a front with the card of another.
            commit = api.create_commit(
                repo_id, additions, commit_message=message, revision=revision, create_pr=create_pr
            )
        return commit.pr_url or str(commit)


def _card_on_hub(api: HfApi, repo_id: str, revision: str | None, cache_dir: Path) -> str | None:
    with _pushing(repo_id):
        try:
            path = api.hf_hub_download(repo_id, CARD_FILE, revision=revision, cache_dir=cache_dir)
        except LocalEntryNotFoundError:  # a subclass of the next error; it means that the hub did not answer
            raise
        except EntryNotFoundError:
            return None
    return read_text(path)


def _check_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DatoError(f"{repo_id!r} cannot be a repository's id: {first_line(error)}") from None


def _why_not_loaded(
    error: Exception, repo_id: str, revision: str | None, subfolder: str | None, local_files_only: bool
) -> str:
    if isinstance(error, GatedRepoError):
        return f"its owner must give access: ask at https://huggingface.co/{repo_id} and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "it has no such repository, or a private one; check the name, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}"
    if isinstance(error, LocalEntryNotFoundError):
        if local_files_only:
            return "it is not in the cache, and local_files_only=True looks nowhere else"
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE is set; unset it to download"
        return f"it is not in the cache, and the hub did not send it: {_reason(error.__cause__ or error)}"
    if isinstance(error, EntryNotFoundError):
        file = FRONT_FILE if subfolder is None else f"{subfolder}/{FRONT_FILE}"
        return f"{repo_id} has no {file}: it holds no front of dato's"
    return _reason(error)


def _reason(error: BaseException) -> str:
    """The message of an exception on one line. The hub's own messages are kept whole: line one is only the status."""
    return " ".join(str(error).split()) if isinstance(error, HfHubHTTPError) else first_line(error)


@contextlib.contextmanager
def _pushing(repo_id: str) -> Iterator[None]:
    """Turn errors of the hub's client within the block into a DatoError of one line."""
    try:
        yield
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set; unset it to upload"
        elif isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
            why = f"the hub does not let you write there ({_reason(error)}); log in with `hf auth login`"
        else:
            why = _reason(error)
        raise DatoError(f"cannot share {repo_id}: {why}") from error
