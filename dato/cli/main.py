"""`dato`: every command under one name. A command's module is imported when it is needed."""

from __future__ import annotations

from typing import ClassVar

import typer

from dato.cli.console import run_app
from dato.cli.lazy_group import LazyGroup


class Commands(LazyGroup):
    """The commands of `dato`."""

    lazy: ClassVar = {
        "generate": ("dato.cli.generate:generate_image", "Generate an image with a schedule, and time it."),
        "demo": ("dato.cli.demo:demo", "Open a page to try a front with your prompts."),
        "plan": ("dato.cli.plan:plan_schedule", "Plan one schedule of a given speed-up, in a minute."),
        "report": ("dato.cli.report:report", "Write a run's page: the front, its schedules and images."),
        "evaluate": ("dato.cli.evaluate:evaluate", "Judge schedules on held-out prompts, beside other methods."),
        "generalise": ("dato.cli.generalise:generalise", "Judge a front under other conditions."),
        "pruned-tokens": ("dato.cli.pruned_tokens:pruned_tokens", "Draw which tokens are pruned."),
        "benchmark": ("dato.cli.benchmark:run_benchmark", "Measure how fast schedules run here."),
        "share": ("dato.cli.share:share", "Upload a front to the Hugging Face hub."),
        "show": ("dato.cli.show:show", "Print a front as a table."),
        "export": ("dato.cli.export:export", "Write one schedule of a front for other programs."),
    }


class Nodes(LazyGroup):
    """The commands of `dato comfyui`."""

    lazy: ClassVar = {
        "install": ("dato.cli.comfyui:install_nodes", "Put dato's nodes into a ComfyUI."),
    }


class Searches(LazyGroup):
    """The commands of `dato search`."""

    lazy: ClassVar = {
        "depth": ("dato.cli.search:search_depth", "Search cache depths and numbers of steps."),
        "ratio": ("dato.cli.search:search_ratio", "Search prune ratios on top of a front of depths."),
        "joint": ("dato.cli.search:search_joint", "Search depths and prune ratios together."),
    }


app = typer.Typer(
    cls=Commands,
    help="Search cache-and-prune schedules for UNet diffusion models, and run them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
)
searches = typer.Typer(
    cls=Searches, help="Search schedules: depths, ratios on top of them, or both together.", no_args_is_help=True
)
searches.callback()(lambda: None)
app.add_typer(searches, name="search")
nodes = typer.Typer(cls=Nodes, help="dato's nodes for ComfyUI.", no_args_is_help=True)
nodes.callback()(lambda: None)
app.add_typer(nodes, name="comfyui")


def main() -> None:
    """Run the command `dato`."""
    run_app(app)
