"""Fronts in repositories of the Hugging Face hub, one in each: `pareto.json`, and a model card that says what it holds.

A shared file names nobody's folders: of a place on the machine that searched, only the last part goes along.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, hf_hub_download
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

from dato.conditions import CACHED
from dato.errors import DatoError, first_line
from dato.files import read_text, write_atomic
from dato.front import FILE, Front, dumps
from dato.samplers import SAMPLERS

CARD = "README.md"
MOST = 32 * 2**20  # bytes of a file that is read; the largest fronts have a few hundred thousand
_REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
_REVISION = re.compile(r"[\w./-]+")
# Conditions whose text is a hub id, a name or a place.
_NAMES = ("model", "clip", "statistics", "image_reward", "pick_score", "inception", "real", "depths")
_ABSOLUTE = re.compile(r"[\\/]|~\w*[\\/]|\.\.?[\\/]|[A-Za-z]:[\\/]|file:")
_FOLDERS = re.compile(r"(?<![\w./\\~])(?:file://)?(?:~|\b[A-Za-z]:)?[\\/](?:[^\s\\/'\":,;()]+[\\/])+")
_MARK = "<!-- dato "


def is_name(text: str) -> bool:
    """Whether text looks like a front on the hub: user/name, or user/name@revision."""
    repo_id, at, revision = text.partition("@")
    # A missing file is a missing file; nobody calls a repository x.json.
    known = _REPO.fullmatch(repo_id) is not None and not repo_id.endswith(".json")
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
    text = _card_of(front, repo_id or folder.resolve().name, present, *cards)
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


def card_in(folder: str | Path) -> str | None:
    """The card that lies beside a front; None if there is none, or that README.md is about something else."""
    path = Path(folder) / CARD
    text = read_text(path) if path.is_file() else ""
    return text if re.match(r"---\n(?:.*\n)*?library_name: *dato *\n(?:.*\n)*?---\n", text) else None


def front_card(front: Front, name: str) -> str:
    """A model card: what the front holds, under what conditions, and how to use it by that name."""
    from dato.quality import METRICS, shown  # with these come the metrics' libraries, which downloading does not need
    from dato.report import label_of, markdown

    known, knee = front.conditions, front.knee()
    metric, model = str(known.get("quality", "quality")), known.get("model")
    header = ModelCardData(
        library_name="dato",
        base_model=model if _is_hub_id(model) else None,
        tags=["stable-diffusion", "dato", "caching", "token-pruning"],
    )

    def sampler(point: Any) -> str:
        return point.scheduler or known.get("scheduler_name") or known.get("scheduler") or ""

    rows = []  # + 0.0: a distance of nothing is 0, not -0
    for number, point in enumerate((*front.points, front.baseline)):
        label = "stock" if number == len(front) else f"{number} ★" if point is knee else f"{number}"
        quality = shown(METRICS[metric], point.quality) if metric in METRICS else point.quality
        cells = {"point": label, "speed-up": f"{point.speedup:.2f}x", label_of(metric): f"{quality + 0.0:.4g}"}
        rows.append(cells | {"steps": f"{point.steps or known.get('steps') or ''}", "sampler": sampler(point)})

    size = [known.get("width"), known.get("height")]
    conditions = {
        "model": model,
        "hardware": known.get("hardware"),
        "dtype": known.get("dtype"),
        "size": None if None in size else f"{size[0]} x {size[1]}",
        "steps of stock": known.get("steps"),
        "guidance scale": known.get("guidance_scale"),
        "quality metric": label_of(metric),
        "prompts": len(known["prompts"]) if "prompts" in known else None,
    }
    listed = "".join(f"- {key}: {_line(value)}\n" for key, value in conditions.items() if value is not None)

    arguments = ['"a prompt"']
    if "guidance_scale" in known:
        arguments.append(f"guidance_scale={known['guidance_scale']:g}")
    if "steps" not in known or all(point.steps for point in front.points):
        arguments.append("**point.kwargs")
    elif any(point.steps for point in front.points):
        arguments.append(f'**{{"num_inference_steps": {known["steps"]}}} | point.kwargs')
    else:
        arguments.append(f"num_inference_steps={known['steps']}")
    own = f'dato.set_scheduler(pipe, "{sampler(knee)}")\n' if sampler(knee) in SAMPLERS else ""
    fastest, slowest = (f"{speed(p.speedup for p in front.points):.2f}x" for speed in (max, min))
    body = f"""---
{header.to_yaml()}
---

# {name.rpartition("/")[2]}

{len(front)} schedules of feature caching and token pruning for {_line(model or "a UNet")}, found by dato:
{slowest} to {fastest} as fast as stock.

{markdown(rows)}
★ is the knee, which `apply_patch` takes unless it is told otherwise. A speed-up is stock's time by the schedule's.

## Conditions
{listed}
`{FILE}` has them all, the prompts too, and what the schedules were compared with.

## Use
`pipe` is the model's pipeline in diffusers:

```python
import dato

point = dato.load_front({json.dumps(name)}).knee()  # or .pick(speedup=...), .pick(quality=...)
{own}dato.apply_patch(pipe, point)
image = pipe({", ".join(arguments)}).images[0]
```
"""
    return f"{body}{_MARK}{_digest(body)} -->\n"


def without_places(front: Front) -> Front:
    """The front, with the last part only of each place on this machine that its conditions name."""
    known = {key: value if key == "prompts" else _bare(value, key) for key, value in front.conditions.items()}
    return replace(front, conditions=known)


def _bare(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_bare(name): _bare(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_bare(item, key) for item in value)
    if not isinstance(value, str):
        return value
    if _ABSOLUTE.match(value) or (key in _NAMES and "/" in value and not _is_hub_id(value)) or "\\" in value:
        cached = CACHED.search(value)  # a model that was given as its place in the hub's cache
        return cached[1].replace("--", "/") if cached else re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return _FOLDERS.sub("", value)


def _is_hub_id(value: Any) -> bool:
    # As diffusers reads it: what is there as a folder is that folder.
    return isinstance(value, str) and _REPO.fullmatch(value) is not None and not os.path.exists(value)


def _card_of(front: Front, name: str, *edited: str | None) -> str:
    """The first of these cards that somebody has edited, else dato's own."""
    own = front_card(front, name)
    for text in edited:
        if text is not None and not _is_untouched(text):
            table = next(part for part in own.split("\n\n") if part.startswith("| point"))
            if table.strip() not in text:
                warnings.warn(f"{CARD} is kept as it was edited, and its table is not this front's", stacklevel=4)
            return text
    return own


def _is_untouched(card: str) -> bool:
    body, _, mark = card.rpartition(_MARK)
    return mark.strip() == f"{_digest(body)} -->"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:20]


def _line(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


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
