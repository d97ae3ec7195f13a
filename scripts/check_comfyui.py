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
        change: Takes (tiny model, stack), and returns a patcher and the positive conditioning. The stack undoes.
        twin: Whether diffusers can do the same.
        depth: Of the partial calls.
        order: Of the partial calls.
        ratio: Of all calls of the partial schedule.
        options: Of `sample`.
    """

    name: str
    sampler: str = "euler"
    change: Callable[[Any, contextlib.ExitStack], tuple[Any, list]] | None = None
    twin: bool = True
    depth: int = 1
    order: int = 0
    ratio: float = 0.0
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
        import comfy.samplers
        from comfyui_version import __version__
    except ImportError as error:
        raise DatoError(f"cannot import ComfyUI: {error}; run this in ComfyUI's Python, with dato installed") from None
    return __version__


def cases() -> list[Case]:
    """Return all cases."""
    # diffusers knows no list of timesteps here, so it cannot tell that heun uses each of them twice.
    own = [Case(sampler, sampler, twin=sampler != "heun") for sampler in SAMPLERS]
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
        Case("half of the tokens pruned", ratio=0.5),
    ]


def run_case(model: Any, case: Case) -> bool:
    """Run a case, print its row, and return whether all is as it must be."""
    from comfyui_models import run_twin, twin_of

    from dato.comfyui import wrappers

    rungs, whole, runs = RUNGS[model.name], dato.Schedule.full(STEPS, rungs=RUNGS[model.name]), []
    with contextlib.ExitStack() as stack:
        plain = (model.patcher, model.positive) if case.change is None else case.change(model, stack)
        begin = wrappers.begin
        stack.callback(setattr, wrappers, "begin", begin)
        wrappers.begin = lambda *given: runs.append(begin(*given)) or runs[-1]
        stock = sample(model, plain, case)
        full = sample(model, scheduled(plain, whole), case)
        with own_ladder():
            ladder = sample(model, scheduled(plain, whole), case)
        total = len(runs[-1].schedule)  # some samplers make two calls a step
        schedule = dato.Schedule.uniform(
            total, 2 if case.order else 3, case.depth, case.order, rungs=rungs
        ).with_ratios(case.ratio)
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


def _apart(model: Any, stack: contextlib.ExitStack) -> tuple[Any, list]:
    """Let ComfyUI believe that memory is short: it runs cond and uncond one after the other."""
    real = model.patcher.model
    real.memory_required = lambda *args, **kwargs: 1e30
    stack.callback(delattr, real, "memory_required")
    return model.patcher, model.positive


def _controlnet(model: Any, stack: contextlib.ExitStack) -> tuple[Any, list]:
    from comfyui_models import conditioning, tiny_controlnet

    hint = torch.rand(1, 3, SIZE * 8, SIZE * 8, generator=torch.Generator().manual_seed(5))
    net = tiny_controlnet(model).set_cond_hint(hint, 0.8, (0.0, 1.0))
    return model.patcher, conditioning(1, control=net, control_apply_to_uncond=True)


def _lora(model: Any, stack: contextlib.ExitStack) -> tuple[Any, list]:
    import comfy.sd

    generator, lora = torch.Generator().manual_seed(6), {}
    for name, weight in model.patcher.model.diffusion_model.named_parameters():
        if name.endswith(("attn1.to_q.weight", "attn2.to_v.weight")):
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            lora[f"{key}.lora_up.weight"] = torch.randn(len(weight), 4, generator=generator)
            lora[f"{key}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1
    return comfy.sd.load_lora_for_models(model.patcher, None, lora, 1.0, 0.0)[0], model.positive


def _freeu(model: Any, stack: contextlib.ExitStack) -> tuple[Any, list]:
    from comfy_extras.nodes_freelunch import FreeU_V2

    # The node looks for blocks of 2 and 4 times the first width.
    model.patcher.model.model_config.unet_config["model_channels"] = 32
    return FreeU_V2().patch(model.patcher, 1.3, 1.4, 0.9, 0.2)[0], model.positive


def _area(model: Any, stack: contextlib.ExitStack) -> tuple[Any, list]:
    from comfyui_models import conditioning

    return model.patcher, model.positive + conditioning(8, area=(8, 8, 0, 4), strength=1.0)


def check_nodes(path: Path, folder: Path) -> bool:
    """Check the rest: installing, the nodes' descriptions, runs one after the other, and a run that is broken off."""
    from comfyui_models import tiny_model

    checks = {
        "the nodes are found": lambda: _nodes_are_found(folder),
        "the rule runs, and says what it did": lambda: _rule(tiny_model("SD 1.5", folder)),
        "two sizes one after the other": lambda: _two_sizes(tiny_model("SD 1.5", folder)),
        "a run after one that was broken off": lambda: _broken_off(tiny_model("SD 1.5", folder)),
        "no node, no change": lambda: _taken_away(tiny_model("SD 1.5", folder)),
    }
    good = True
    for name, check in checks.items():
        found = check()
        print(f"- {name}: {'yes' if found is True else found or 'NO !'}", flush=True)
        good &= bool(found)
    return good


def _nodes_are_found(folder: Path) -> bool:
    import nodes

    (folder / "custom_nodes").mkdir()
    file = install(folder / "custom_nodes")
    asyncio.run(nodes.load_custom_node(str(file.parent)))
    found = [nodes.NODE_CLASS_MAPPINGS.get(name) for name in ("DatoApplySchedule", "DatoPruneTokens")]
    return None not in found and all(len(node.INPUT_TYPES()["required"]) > 5 for node in found)


def _rule(model: Any) -> str:
    from dato.comfyui import wrappers
    from dato.comfyui.apply import apply_schedule

    texts: list[str] = []
    before, wrappers.show = wrappers.show, lambda text, nodes: texts.append(text)
    try:
        sample(model, (apply_schedule(model.patcher, speedup=1.5)[0], model.positive), Case("", "dpmpp_2m"))
    finally:
        wrappers.show = before
    return texts[0].replace("\n", " ")


def _two_sizes(model: Any) -> bool:
    conditioned = scheduled((model.patcher, model.positive), dato.Schedule.uniform(STEPS, 3, 3, 1))
    small, large = Case(""), Case("", options={"size": (20, 20), "denoise": 0.6})
    alone = sample(model, conditioned, large)
    sample(model, conditioned, small)
    return torch.equal(sample(model, conditioned, large), alone)


def _broken_off(model: Any) -> bool:
    conditioned = scheduled((model.patcher, model.positive), dato.Schedule.uniform(STEPS, 3, 3, 1))
    alone, calls = sample(model, conditioned, Case("")), []

    def interrupt(h: Tensor, options: dict) -> Tensor:
        calls.append(options["block"])
        if len(calls) > 30:
            raise KeyboardInterrupt
        return h

    patcher = conditioned[0].clone()
    patcher.set_model_input_block_patch(interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        sample(model, (patcher, model.positive), Case(""))
    return torch.equal(sample(model, conditioned, Case("")), alone) and len(calls) == 31


def _taken_away(model: Any) -> bool:
    plain = model.patcher, model.positive
    stock = sample(model, plain, Case(""))
    sample(model, scheduled(plain, dato.Schedule.uniform(STEPS, 3, 3).with_ratios(0.5)), Case(""))
    hooks = [m for m in model.patcher.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    return torch.equal(sample(model, plain, Case("")), stock) and not hooks


if __name__ == "__main__":
    main(check_comfyui)
