"""A metric is one file: label, digits, sign and options come from its class, and all tables use them."""

import inspect
from types import SimpleNamespace
from typing import Annotated

import pytest
import torch
import typer
from typer.testing import CliRunner

from dato import DatoError, emoji_sd
from dato.cli.metric_options import files_of, with_metric_options
from dato.hub.paths import without_paths
from dato.metrics import (
    METRICS,
    OPTIONS,
    Metric,
    Option,
    Setup,
    label_of,
    load_metric,
    measured_with,
    setup_for,
    shown,
    text_of,
)
from dato.metrics.clip import CLIP, STATISTICS
from dato.search.options import RatioSearch, metric_options


class Sharpness(Metric):
    """A metric of somebody else: a mean that is negative inside dato."""

    name, label, digits, lower_is_better = "sharpness", "Sharpness (px)", 1, True
    options = (Option("edges", "A file of edges.", default="edges.bin"),)

    def __init__(self, setup):
        self.edges = setup.get(self.options[0])

    def measure(self, images, prompts, references):
        return -images.mean((1, 2, 3))

    def summary(self, measured):
        return measured.mean().item()


def test_every_metric_says_how_it_is_shown():
    for name, metric in METRICS.items():
        assert name == metric.name and metric.label and metric.__doc__
        assert isinstance(metric.digits, int) and all(isinstance(option, Option) for option in metric.options)
    assert {name for name, metric in METRICS.items() if metric.lower_is_better} == {"fid", "kid", "frechet", "lpips"}
    assert {name for name, metric in METRICS.items() if metric.against_stock} == {"psnr", "ssim", "lpips"}
    assert set(OPTIONS) == {
        *("clip", "statistics", "image_reward", "image_reward_backend", "pick_score", "inception", "real")
    }


def test_values_are_shown_with_the_fields_sign_and_digits():
    assert (label_of("psnr"), label_of("frechet"), label_of("mine")) == ("PSNR (dB)", "Fréchet distance", "mine")
    assert (shown("psnr", 30), shown("fid", -12), shown("mine", -3)) == (30, 12, -3)
    assert shown(METRICS["fid"], -12) == 12 and shown("fid", shown("fid", -12)) == -12
    assert (text_of("psnr", 30), text_of("ssim", 0.98765), text_of("kid", -1.5)) == ("30.00", "0.9877", "1.500")
    assert text_of("mine", -3) == "-3.00"


def test_a_new_metric_is_a_class_and_an_entry(monkeypatch):
    monkeypatch.setitem(METRICS, "sharpness", Sharpness)
    monkeypatch.setitem(OPTIONS, "edges", Sharpness.options[0])
    assert label_of("sharpness") == "Sharpness (px)" and text_of("sharpness", -2.25) == "2.2"
    metric = load_metric("sharpness", Setup(edges="mine.bin"))
    assert metric.edges == "mine.bin" and load_metric("sharpness", Setup()).edges == "edges.bin"
    assert metric(torch.ones(2, 3, 4, 4), ["a", "b"], torch.ones(2, 3, 4, 4)) == -1
    assert files_of({"edges": "mine.bin", "clip": None, "seed": 3}) == {"edges": "mine.bin"}


def test_a_search_of_ratios_takes_from_the_front_what_was_not_given():
    front = {"clip": "front/clip", "real": "front/real", "seed": 3}
    assert RatioSearch(clip="mine").metric_files(front) == {"clip": "mine", "real": "front/real"}


def test_options_of_a_command_are_those_of_the_metrics(monkeypatch, tmp_path):
    monkeypatch.setitem(OPTIONS, "edges", Sharpness.options[0])
    monkeypatch.setattr("dato.cli.metric_options.MetricOptions", metric_options(OPTIONS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges").write_text("")
    seen = SimpleNamespace(params=None)

    @with_metric_options(before="seed")
    def command(ctx: typer.Context, images: Annotated[int, typer.Option(help="How many.")] = 2, seed: int = 0) -> None:
        """Do something."""
        seen.params = ctx.params | {"own": (images, seed)}

    assert list(inspect.signature(command).parameters) == ["ctx", "images", *OPTIONS, "seed"]
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--images", "3", "--edges", "edges", "--image-reward-backend", "package"])
    assert result.exit_code == 0, result.output
    assert seen.params["own"] == (3, 0)
    given = {"edges": str(tmp_path / "edges"), "image_reward_backend": "package"}  # a path is found from anywhere
    assert files_of(seen.params) == given
    shown_defaults = {option.name: option.show_default for option in typer.main.get_command(app).params}
    assert shown_defaults["edges"] == "edges.bin" and shown_defaults["pick_score"] == "yuvalkirstain/PickScore_v1"


def test_the_embedded_model_has_a_clip_of_its_own():
    embedded, other = setup_for("emoji-sd", {"real": "x"}), setup_for("some/model", {"real": "x"}, device="meta")
    assert embedded == Setup(real="x") and embedded.get(CLIP) == emoji_sd.CLIP == Setup().get(CLIP)
    assert other.get(CLIP) == "openai/clip-vit-base-patch16" and other.get(STATISTICS) is None
    assert other.device == "meta" and other.options["real"] == "x"
    assert setup_for("some/model", {"clip": "mine"}).get(CLIP) == "mine"


def test_stores_of_older_versions_know_what_they_were_measured_with():
    old = {"image_reward": "THUDM/ImageReward", "image_reward_backend": "transformers", "inception": None}
    old |= {"pick_score": "yuvalkirstain/PickScore_v1"}
    assert measured_with(Setup(real="pictures")) == old | {"clip": "emoji-sd"}
    assert measured_with(setup_for("some/model")) == old | {"clip": "openai/clip-vit-base-patch16"}
    assert measured_with(Setup(clip="mine"))["clip"] == "mine"


def test_a_setup_is_data_and_shares_what_is_loaded():
    setup, made = Setup(clip="x"), []
    for _ in range(2):
        assert setup.shared("model", lambda: made.append(1) or "model") == "model"
    assert made == [1] and setup == Setup(clip="x") != Setup(clip="x").on("meta")
    assert setup.on("meta").options == {"clip": "x"}
    with pytest.raises(DatoError, match="unknown option 'clpi' of the quality metrics; known are clip"):
        load_metric("psnr", Setup(clpi="x"))


def test_paths_that_metrics_are_made_from_are_not_shared():
    conditions = {option.name: "a/b/c" for option in OPTIONS.values()}
    kept = {name: "c" if option.is_path else "a/b/c" for name, option in OPTIONS.items()}
    assert without_paths(conditions) == kept
