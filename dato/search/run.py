"""Run a search from its start to a front. A search that was stopped goes on where its journal ends."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from dato.evaluation.pool import Pool
from dato.front import Front
from dato.search.course import Course
from dato.search.guided_course import GuidedCourse
from dato.search.prepare import PreparedSearch
from dato.search.progress import SearchProgress
from dato.search.run_folder import Folder
from dato.search.study import Study


def run(
    prepared: PreparedSearch,
    pool: Pool,
    folder: Folder,
    remembered: Mapping[str, Any],
    progress: SearchProgress,
    further: Mapping[str, Any] | None = None,
) -> Front:
    """Search, or resume the search whose journal the folder holds, and write the front.

    References compete for the front, so stock with fewer steps or a rival dominates no point of it.

    Args:
        prepared: The search.
        pool: What judges candidates. It is closed at the end.
        folder: Where everything is written.
        remembered: Options for the journal, for whoever resumes the search.
        progress: What the search reports to.
        further: Conditions beside the search's own.

    Returns:
        The front. `conditions["search"]["finished"]` is False if `progress` stopped the search.

    Raises:
        DatoError: if the journal holds another search, or no candidate could be judged.
    """
    problem = prepared.problem(pool.facts)
    conditions = {**prepared.conditions(pool.facts, problem), **(further or {})}
    with contextlib.closing(Study(folder, pool)) as study:
        # Measured times of another machine do not compare.
        machine = {"hardware": pool.facts.hardware} if prepared.timing == "measured" else {}
        machine["device"] = torch.device(prepared.recipe.device).type
        study.begin(prepared.kind, remembered, {**conditions, **machine}, problem.pruning, prepared.floor)
        _tell_what_was_resumed(study, progress)
        if problem.warm_start.schedules:
            progress.note(problem.warm_start.told(prepared.recipe.validation))
        course = Course if prepared.preset.minutes is None else GuidedCourse
        front = course(prepared, problem, study, progress, conditions).front()
        front.save(folder.front)
    return front


def _tell_what_was_resumed(study: Study, progress: SearchProgress) -> None:
    if study.torn:
        progress.note("The journal's last line was torn, as by a crash; that candidate is judged again.")
    if study.other_versions:
        changed = ", ".join(f"{name}: {change}" for name, change in study.other_versions.items())
        progress.note(f"warning: libraries have changed since the search was begun ({changed})")
    if study.replayed:
        progress.note(f"Going on with {study.folder.path}: {study.replayed} candidates are known.")
