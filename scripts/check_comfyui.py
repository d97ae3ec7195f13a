"""Check dato's nodes on a real ComfyUI, with tiny models of random weights, on the CPU. See docs/comfyui.md.

For each case it compares three things with what they must equal:

- whole: a schedule of whole calls, with ComfyUI without dato. It must be the same to the bit.
- ladder: the same, but dato's own loop runs each call, as it runs partial calls. It must be the same to the bit, too.
- partial: a schedule of every third call whole, with diffusers' UNet of the same weights that runs the same schedule by
  `dato.apply_patch`, in ComfyUI's sampler. It must be the same to float tolerance.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

import dato
from dato.cli.console import main
from dato.comfyui.install import install
from dato.comfyui.settings import Settings
from dato.errors import DatoError

STEPS, SIZE = 6, 16
SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "heun", "dpmpp_sde")
RUNGS = {"SD 1.5": 12, "SDXL": 9}
TOLERANCE = 1e-4  # relative to the latents' standard deviation


class Case(NamedTuple):
    """One case.

    Attributes:
        name: What it is called in the table.
        sampler: ComfyUI's sampler.
        change: Takes (tiny model, patcher), and returns a patcher and the positive conditioning.
        twin: Whether diffusers can do the same.
        depth: Of the partial calls.
        order: Of the partial calls.
        options: Of `sample`.
    """

    name: str
    sampler: str = "euler"
    change: Callable[[Any, Any], tuple[Any, list]] | None = None
    twin: bool = True
    depth: int = 1
    order: int = 0
    options: dict[str, Any] = {}  # noqa: RUF012 (it is never changed)


def check_comfyui(
    path: Annotated[Path, typer.Argument(help="The folder of a ComfyUI.")],
    only: Annotated[str, typer.Option(help="Only cases whose name has this in it.")] = "",
) -> None:
    """Check dato's nodes on a ComfyUI, and print a table. Exit with 1 if anything is wrong."""
    version = prepare(path)
    from comfyui_models import tiny_model

    print(f"ComfyUI {version}, PyTorch {torch.__version__}, dato {dato.__version__}, CPU\n")
    print("| model | case | calls | whole | ladder | partial |\n|---|---|---|---|---|---|")
    good = True
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name in RUNGS:
            model = tiny_model(name, Path(folder))
            for case in cases():
                if only in case.name:
                    good &= run_case(model, case)
        print()
        if not only:
            good &= check_nodes(path, Path(folder))
    print("\nAll is as it must be." if good else "\nSomething is wrong: the cells with !")
    raise typer.Exit(0 if good else 1)


def prepare(path: Path) -> str:
    """Put a ComfyUI on the path, import it for the CPU, and return its version."""
    if not (path / "comfy" / "samplers.py").is_file():
        raise DatoError(f"{path} is no ComfyUI: it has no comfy/samplers.py")
    sys.path.insert(0, str(path.resolve()))
    sys.argv = [sys.argv[0], "--cpu"]  # what ComfyUI's options read
    import comfy.options

    comfy.options.enable_args_parsing()
    try:
        import comfy.samplers  # noqa: F401
        from comfyui_version import __version__
    except ImportError as error:
        raise DatoError(f"cannot import ComfyUI: {error}; run this in ComfyUI's Python, with dato installed") from None
    return __version__


def cases() -> list[Case]:
    """Return all cases."""
    own = [Case(sampler, sampler) for sampler in SAMPLERS]
    return [
        *own,
        Case("depth 3, order 1", "dpmpp_2m", depth=3, order=1),
        Case("depth 0, order 1", "dpmpp_2m", depth=0, order=1),
        Case("depth 6, order 2", depth=6, order=2),
        Case("cond and uncond apart", change=_apart),
        Case("ControlNet", change=_controlnet, depth=3),
        Case("LoRA", change=_lora, depth=3),
        Case("FreeU", change=_freeu, twin=False, depth=3),
        Case("an area of its own", change=_area, twin=False),
        Case("batch of 2", options={"batch": 2}),
        Case("denoise 0.5", options={"denoise": 0.5}),
        Case("20 x 12 latents", options={"size": (20, 12)}, depth=3),
        Case("tokens pruned", change=_pruned, twin=True),
    ]


def run_case(model: Any, case: Case) -> bool:
    """Run a case, print its row, and return whether all is as it must be."""
    from comfyui_models import run_twin, twin_of

    from dato.comfyui import wrappers

    change = case.change or (lambda model, patcher: (patcher, model.positive))
    with contextlib.ExitStack() as stack:
        plain = change(model, model.patcher)
        stack.callback(getattr(plain[0], "undo", lambda: None))
        stock = sample(model, plain, case)
        calls, runs = [], []
        begin = wrappers.begin
        stack.callback(setattr, wrappers, "begin", begin)
        wrappers.begin = lambda *given: runs.append(begin(*given)) or runs[-1]

        rungs = RUNGS[model.name]
        full = sample(model, scheduled(plain, dato.Schedule.full(STEPS, rungs=rungs)), case)
        with own_ladder():
            ladder = sample(model, scheduled(plain, dato.Schedule.full(STEPS, rungs=rungs)), case)
        total = len(runs[-1].schedule)
        schedule = dato.Schedule.uniform(total, 3, case.depth, case.order, rungs=rungs)
        partial = sample(model, scheduled(plain, schedule), case)
        calls = "".join("█" if depth == rungs else str(depth) for _, depth in sorted(runs[-1].depths.items()))
        expected = None
        if case.twin:
            twin = twin_of(model)
            dato.apply_patch(twin, schedule)
            patcher = plain[0].clone()
            patcher.add_wrapper_with_key("diffusion_model", "twin", run_twin(twin))
            expected = sample(model, (patcher, plain[1]), case)
    cells = [compared(full, stock, 0.0), compared(ladder, stock, 0.0)]
    cells.append(("", True) if expected is None else compared(partial, expected, TOLERANCE))
    changed = compared(partial, stock, 0.0)[0] != "0.0"
    cells.append(("" if changed else " !nothing was left out", changed))
    row = " | ".join(cell for cell, _ in cells[:3])
    print(f"| {model.name} | {case.name} | {calls}{cells[3][0]} | {row} |", flush=True)
    return all(good for _, good in cells)


def sample(model: Any, conditioned: tuple[Any, list], case: Case, seed: int = 3) -> Tensor:
    """Generate latents as ComfyUI's node KSampler does."""
    import comfy.sample

    patcher, positive = conditioned
    size, batch = case.options.get("size", (SIZE, SIZE)), case.options.get("batch", 1)
    latents = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(latents, seed)
    if "denoise" in case.options:
        latents = comfy.sample.prepare_noise(latents, seed + 1)
    numbers = {"denoise": case.options.get("denoise", 1.0), "seed": seed, "disable_pbar": True}
    given = (patcher, noise, STEPS, 5.0, case.sampler, "normal", positive, model.negative, latents)
    return comfy.sample.sample(*given, **numbers)


def scheduled(conditioned: tuple[Any, list], schedule: dato.Schedule) -> tuple[Any, list]:
    """Return a copy of the model with a schedule."""
    from dato.comfyui.apply import with_settings

    return with_settings(conditioned[0], Settings(name="check", schedule=schedule))[0], conditioned[1]


@contextlib.contextmanager
def own_ladder() -> Iterator[None]:
    """Let dato's loop run whole calls, too, in a `with` block."""
    from dato.comfyui.run import Run

    before = Run._run_whole
    Run._run_whole = lambda self, forward, cache, args, kwargs, given: self._run(len(self._ladder), cache, given)
    try:
        yield
    finally:
        Run._run_whole = before


def compared(a: Tensor, b: Tensor, tolerance: float) -> tuple[str, bool]:
    """Return the largest difference, relative to the standard deviation of `b`, and whether it is small enough."""
    difference = ((a - b).abs().max() / b.std()).item()
    good = difference <= tolerance
    return ("0.0" if difference == 0 else f"{difference:.0e}") + ("" if good else " !"), good
