"""Generate for the page: one job at a time, each can be stopped, and stock's images are kept for a while."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline

from dato.demo.choices import Choice
from dato.demo.job import Job, Result, Shot
from dato.demo.run import Run, Stopped
from dato.errors import DatoError, reason_of
from dato.evaluation.flaws import BLACK
from dato.generation.sampling import Sampling, generate
from dato.metrics import Setup, load_metric
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.unet.patch import current_schedule
from dato.utils.memory import survive_out_of_memory

STOCK = "stock"
KEPT = 16  # of stock's images
WARM_UP_STEPS = 3
OUT_OF_MEMORY = "memory ran out: close other programs, or start the demo with a smaller --height and --width"
NOT_FINITE = "the image of {} is not made of finite numbers: start the demo with --dtype float32 or bfloat16"
ALL_BLACK = "the image of {} is black and stock's is not: choose a slower one, or start the demo with --dtype float32"
BUG = "this went wrong: {}. Where `dato demo` was started, it says more. You can go on"


class Studio:
    """A pipeline, and one thread that generates with it.

    Args:
        pipe: The pipeline. Nobody else may use it meanwhile.
        stock: How stock's image is generated. The seed is each job's own.
    """

    def __init__(self, pipe: DiffusionPipeline, stock: Sampling) -> None:
        self.pipe, self.stock = pipe, replace(stock, batch_size=1)
        self._psnr = load_metric("psnr", Setup(device="cpu"))
        self._kept: OrderedDict[tuple[str, int], Shot] = OrderedDict()  # the one that was used last comes last
        self._worker = ThreadPoolExecutor(1, "dato-demo")
        self._line: list[Run] = []  # the runs that are not over, in their order
        self._lock = threading.Lock()

    def warm_up(self) -> float:
        """Generate twice, in few steps, so that the first image takes no longer than the others.

        Returns:
            About how many seconds stock will take for an image.

        Raises:
            DatoError: if memory runs out, or as `generate` does.
        """
        return self._worker.submit(self._warm_up).result()

    def _warm_up(self) -> float:
        steps = min(WARM_UP_STEPS, self.stock.steps)
        with survive_out_of_memory(self.pipe.unet.device):
            for _ in range(2):
                generated = generate(self.pipe, [""], replace(self.stock, steps=steps))
            self._psnr.measure(generated.images, [""], generated.images)
            return generated.latency_ms[0] / 1000 * self.stock.steps / steps
        raise DatoError(OUT_OF_MEMORY)

    def start(self, job: Job) -> Run:
        """Begin a job as soon as those before it are over. Return it at once."""
        run = Run(job)
        with self._lock:
            self._line.append(run)
            self._say_how_many_are_ahead()
        self._worker.submit(self._work, run)
        return run

    def stop(self, run: Run) -> None:
        """Stop a job, whether it waits or is worked on."""
        run.stop()
        with self._lock:
            self._say_how_many_are_ahead()

    def close(self) -> None:
        """Stop every job and end the thread."""
        with self._lock:
            for run in self._line:
                run.stop()
        self._worker.shutdown()

    def _say_how_many_are_ahead(self) -> None:
        self._line = [run for run in self._line if not run.snapshot.over]
        for ahead, run in enumerate(self._line):
            run.update(ahead=ahead)

    def _work(self, run: Run) -> None:
        """Do a job. Whatever happens, the next one can be done."""
        if run.snapshot.over:
            return
        error = OUT_OF_MEMORY
        try:
            with survive_out_of_memory(self.pipe.unet.device):
                self._generate_all(run)
                error = ""
        except Stopped:
            pass
        except DatoError as wrong:
            error = str(wrong)
        except Exception as bug:
            logging.getLogger(__name__).exception("a generation of dato demo failed")
            error = BUG.format(reason_of(bug))
        run.update(error=error, doing="", over=True)
        with self._lock:
            self._say_how_many_are_ahead()

    def _generate_all(self, run: Run) -> None:
        """Generate with each choice, then stock's image if it is not there yet."""
        job = run.job
        stock = self._kept.get((job.prompt, job.seed))
        run.update(stock=stock)
        with _noted(run):
            for choice in job.choices:
                run.update(results=(*run.snapshot.results, self._result(run, choice, stock)))
        if stock is None:
            stock = self._shot(run, STOCK, self.stock.steps)
        self._keep(job, stock)
        results = tuple(self._judged(job, result, stock) for result in run.snapshot.results)
        run.update(stock=stock, results=results)

    def _result(self, run: Run, choice: Choice, stock: Shot | None) -> Result:
        with choice.patched(self.pipe):
            shot = self._shot(run, choice.name, choice.steps(self.stock.steps))
            schedule = self._as_run(current_schedule(self.pipe), shot.steps)
        result = Result(choice, shot, schedule)
        return result if stock is None else self._judged(run.job, result, stock)

    def _as_run(self, schedule: Schedule, steps: int) -> Schedule:
        """Return a schedule as a run of so many steps has it."""
        calls = num_calls(self.pipe, steps)
        return schedule if len(schedule) == calls else schedule.resampled(calls)

    def _judged(self, job: Job, result: Result, stock: Shot) -> Result:
        """Return a result with its PSNR. Raise DatoError if its image is black and stock's is not."""
        image, reference = result.shot.image, stock.image
        if image.max() < BLACK <= reference.max():
            raise DatoError(ALL_BLACK.format(result.choice.name))
        return replace(result, psnr=self._psnr.measure(image[None], [job.prompt], reference[None]).item())

    def _shot(self, run: Run, name: str, steps: int) -> Shot:
        """Generate one image. Raise DatoError if it is not finite, and Stopped if the job is stopped."""
        run.update(doing=name, call=0, calls=num_calls(self.pipe, steps))
        with _watched(self.pipe, run):
            generated = generate(self.pipe, [run.job.prompt], replace(self.stock, steps=steps, seed=run.job.seed))
        image = generated.images[0]
        if not torch.isfinite(image).all():
            raise DatoError(NOT_FINITE.format(name))
        return Shot(image, generated.latency_ms[0], steps)

    def _keep(self, job: Job, stock: Shot) -> None:
        self._kept[job.prompt, job.seed] = stock
        self._kept.move_to_end((job.prompt, job.seed))
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)


@contextlib.contextmanager
def _watched(pipe: DiffusionPipeline, run: Run) -> Iterator[None]:
    """Count the UNet's calls within a `with` block. A call of a job that was stopped raises Stopped."""
    calls = iter(range(1, 1_000_000))
    handle = pipe.unet.register_forward_pre_hook(lambda *_: run.at_call(next(calls)))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _noted(run: Run) -> Iterator[None]:
    """Turn warnings to the user into notes of a run."""

    def note(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if category is UserWarning and str(message) not in run.snapshot.notes:
            run.update(notes=(*run.snapshot.notes, str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = note
        yield
