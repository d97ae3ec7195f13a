"""What each browser tab asks for and gets. Nothing here needs gradio."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dato.demo import markup
from dato.demo.choices import RULE_SPEEDUPS, Choice, rule_choice
from dato.demo.job import LARGEST_SEED, Job, Result, Snapshot
from dato.demo.png_file import name_of, result_png
from dato.demo.run import Run
from dato.demo.studio import Studio
from dato.demo.usage import Loading, command, python_lines
from dato.errors import DatoError

SETTLE = 0.12  # seconds for which a slider must rest before anything is generated
FRONT, RULE, COMPARE = "front", "rule", "compare"  # the tabs of the page


class Sessions:
    """The jobs of all browser tabs. Each of those is a session, and has at most one job.

    Args:
        studio: What generates.
        loading: How its pipeline was loaded.
        choices: The points of the front, slowest first; (): there is no front.
        prompts: Of them `random_prompt` takes one.
    """

    def __init__(self, studio: Studio, loading: Loading, choices: Sequence[Choice], prompts: Sequence[str]) -> None:
        self.studio, self.loading, self.choices, self.prompts = studio, loading, tuple(choices), prompts
        self.compared = {choice.name: choice for choice in (*choices, *map(rule_choice, RULE_SPEEDUPS))}
        self._wanted: dict[str, object] = {}  # the last wish of each session; a later wish replaces it
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    def choose(self, tab: str, number: float, speedup: float, names: Sequence[str]) -> tuple[Choice, ...]:
        """Return what is chosen on a tab of the page.

        Args:
            tab: FRONT, RULE or COMPARE.
            number: Of the point, for FRONT.
            speedup: For RULE.
            names: Of what is compared, for COMPARE.

        Raises:
            DatoError: if there is no front, or the speed-up is wrong.
        """
        if tab == FRONT and not self.choices:
            raise DatoError("there is no front of this model: take one of the other tabs")
        if tab == FRONT:
            return (self.choices[max(0, min(int(number), len(self.choices) - 1))],)
        if tab == RULE:
            return (rule_choice(speedup),)
        return tuple(self.compared[name] for name in dict.fromkeys(names) if name in self.compared)

    def generate(self, session: str, job: Job) -> Iterator[Snapshot]:
        """Run a job in place of the session's last one, and yield what is known of it.

        If a later job of the session replaces it, no more is yielded.
        """
        wish = object()
        with self._lock:
            self._wanted[session] = wish
        self.stop(session)
        time.sleep(SETTLE)
        with self._lock:
            if self._wanted.get(session) is not wish:
                return
            run = self._runs[session] = self.studio.start(job)
        try:
            for snapshot in run.snapshots():
                if self._wanted.get(session) is not wish:
                    return
                yield snapshot
        finally:
            self._forget(session, wish, run)

    def stop(self, session: str) -> None:
        """Stop the job of a session, if it has one."""
        with self._lock:
            run = self._runs.get(session)
        if run is not None:
            self.studio.stop(run)

    def _forget(self, session: str, wish: object, run: Run) -> None:
        """Stop a run that nobody watches any more, and drop what is kept of it."""
        self.studio.stop(run)
        with self._lock:
            if self._wanted.get(session) is wish:
                del self._wanted[session], self._runs[session]

    def random_prompt(self, other_than: str = "") -> str:
        """Return one of the prompts, another one than this."""
        return random.choice([prompt for prompt in self.prompts if prompt != other_than] or list(self.prompts))

    def use(self, job: Job, result: Result, snapshot: Snapshot) -> markup.Use:
        """Return how to make a result again."""
        about = result.choice, self.loading, self.studio.stock, job.prompt, job.seed
        file = result_png(job, result, snapshot.stock, self.loading, self.studio.stock)
        return markup.Use(python_lines(*about), command(*about), file, name_of(job, result.choice.name))


def seed_of(number: Any) -> int:
    """Return a seed that was typed. Raise DatoError if it is no whole number."""
    if not isinstance(number, (int, float)) or number != number or number in (float("inf"), float("-inf")):
        raise DatoError(f"type a seed: a whole number from 0 to {LARGEST_SEED}")
    if int(number) != number:
        raise DatoError(f"the seed must be a whole number, not {number:g}")
    return int(number)
