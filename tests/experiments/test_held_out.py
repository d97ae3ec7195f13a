"""Evaluation in batches: what is on the disk counts and is not made again; measured from what was generated."""

from dataclasses import replace

import pytest
import torch
from conftest import PROMPTS, toy_recipe

from dato import DatoError, Schedule
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.pool import InProcess, facts_of
from dato.experiments.held_out import fill, rows, settings_of
from dato.experiments.image_store import STOCK, Batch, Gallery
from dato.experiments.method_families import METHODS, known_methods, methods
from dato.experiments.sito_ablations import ABLATIONS
from dato.metrics import Setup, load_metric
from dato.utils.images import read_image

RECIPE = replace(toy_recipe(4, 3, 2, "psnr", "clip-score", "frechet"), prompts=tuple(PROMPTS))
SETTINGS = {"model": "emoji-sd", "steps": 4}
CONTENDERS = {"N=2 d=1": Schedule.uniform(4, 2, 1), "3 steps": Schedule.full(3)}


@pytest.fixture(scope="module")
def judges():
    judges = InProcess(RECIPE)
    yield judges
    judges.close()


@pytest.fixture(scope="module")
def gallery(judges, tmp_path_factory):
    gallery = Gallery(tmp_path_factory.mktemp("gallery"), SETTINGS, RECIPE.prompts, CONTENDERS)
    assert list(fill(gallery, judges, 2)) == [(0, 2), (1, 2), (2, 2)]
    return gallery


@pytest.fixture
def asked(monkeypatch):
    """What is generated, in turn."""
    seen = []
    plain = Evaluator.generate
    monkeypatch.setattr(Evaluator, "generate", lambda self, *a, **k: seen.append(a[0]) or plain(self, *a, **k))
    return seen


def again(gallery, prompts=RECIPE.prompts, contenders=CONTENDERS, **settings):
    return Gallery(gallery.folder, SETTINGS | settings, prompts, contenders)


def test_rows_are_what_the_metrics_say_of_all_images_at_once(judges, gallery):
    found, failed = rows(gallery, judges, 2)
    assert list(found) == [STOCK, *CONTENDERS] and failed == {}
    evaluator = judges.evaluator
    reference = evaluator.generate(None, evaluator.prompts, RECIPE.sampling).images
    for name, contender in {STOCK: None, **CONTENDERS}.items():
        images = evaluator.generate(contender, evaluator.prompts, RECIPE.sampling).images
        for metric in evaluator.metrics:
            expected = metric(images, evaluator.prompts, reference)
            assert found[name].metrics[metric.name] == pytest.approx(expected, rel=1e-4)
        for index, image in enumerate(images):
            assert (read_image(gallery.path(name, index)) - image).abs().max() <= 0.51 / 255
        assert 0 < found[name].unet_ms < found[name].latency_ms and found[name].peak_bytes > 2**20
    assert found[STOCK].metrics["psnr"] == 100 > found["N=2 d=1"].metrics["psnr"] and found[STOCK].speedup == 1


def test_only_what_is_missing_is_made(judges, gallery, asked):
    before, _ = rows(gallery, judges, 2)
    same = again(gallery)
    assert list(fill(same, judges, 2)) == [(2, 2)] and not asked
    # A killed run left no measurements of one batch.
    [lost] = gallery.path("3 steps", 2).parent.glob("00002-00003.safetensors")
    lost.unlink()
    assert list(fill(same, judges, 2)) == [(1, 2), (2, 2)]
    assert asked == [None, Schedule.full(3)]  # stock, to measure beside, and the one that is missing
    after, _ = rows(gallery, judges, 2)
    assert {n: r.metrics for n, r in after.items()} == {n: r.metrics for n, r in before.items()}


def test_more_prompts_and_methods_are_added_to_what_is_there(judges, tmp_path, asked):
    first = Gallery(tmp_path, SETTINGS, RECIPE.prompts[:1], {"3 steps": Schedule.full(3)})
    few = replace(RECIPE, prompts=RECIPE.prompts[:1])
    list(fill(first, InProcess(few), 2, memory=False))
    assert asked == [None, Schedule.full(3)]
    whole = again(first)
    first_seen, *_ = fill(whole, judges, 2, memory=False)
    assert first_seen == (0, 2)  # a batch of one is no part of a batch of two
    found, _ = rows(whole, judges, 2)
    del asked[:]
    new = Schedule.uniform(4, 3, 0)
    other = again(first, contenders={"3 steps": Schedule.full(3), "new": new})
    list(fill(other, judges, 2, memory=False))
    assert asked == [None, new] * 2
    assert rows(other, judges, 2)[0]["3 steps"].metrics == found["3 steps"].metrics


def test_another_schedule_of_the_same_name_is_another_method(judges, gallery, asked):
    changed = again(gallery, contenders={"N=2 d=1": Schedule.uniform(4, 2, 2), "3 steps": Schedule.full(3)})
    list(fill(changed, judges, 2))
    assert set(asked) == {None, Schedule.uniform(4, 2, 2)}
    assert rows(changed, judges, 2)[0]["N=2 d=1"].metrics != rows(gallery, judges, 2)[0]["N=2 d=1"].metrics


def test_a_new_metric_is_measured_on_images_made_again(gallery, asked):
    more = InProcess(replace(RECIPE, metrics=("psnr", "ssim", "clip-score", "frechet")))
    list(fill(again(gallery), more, 2, memory=False))
    assert len(asked) == 2 * 3
    assert rows(again(gallery), more, 2)[0]["3 steps"].metrics["ssim"] < 1


def test_speedups_are_those_of_each_turn_and_of_whole_batches(judges, tmp_path):
    gallery = Gallery(tmp_path, SETTINGS, RECIPE.prompts, CONTENDERS)
    score = {name: torch.ones(2) for name in ("psnr", "clip-score")} | {"frechet": torch.rand(2, 128)}
    for name in gallery.methods:
        own = 10.0 if name == STOCK else 5.0
        gallery.put(name, 0, 2, Batch(score, own, 1.0, stock_ms=20.0))
        gallery.put(name, 2, 3, Batch({n: x[:1] for n, x in score.items()}, own * 9, 1.0, stock_ms=1.0))
    found, _ = rows(gallery, judges, 2)
    assert found["3 steps"].speedup == 4 and found["3 steps"].latency_ms == 5


def test_who_runs_out_of_memory_or_gives_black_images_is_told(judges, tmp_path, monkeypatch):
    plain = Evaluator.generate

    def failing(self, contender, *arguments, **options):
        if contender == Schedule.full(3):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        made = plain(self, contender, *arguments, **options)
        return made if contender is None else replace(made, images=made.images * 0)

    monkeypatch.setattr(Evaluator, "generate", failing)
    gallery = Gallery(tmp_path, SETTINGS, RECIPE.prompts, CONTENDERS)
    list(fill(gallery, judges, 2, memory=False))
    found, failed = rows(gallery, judges, 2)
    assert failed == {"3 steps": "out of memory"} and found["N=2 d=1"].failure == "it gives black images"
    list(fill(gallery, judges, 2, memory=False))  # what failed is not tried again

    def broken(self, contender, *arguments, **options):
        made = plain(self, contender, *arguments, **options)
        return replace(made, images=made.images * torch.nan)

    monkeypatch.setattr(Evaluator, "generate", broken)
    with pytest.raises(DatoError, match="stock's images are not finite"):
        list(fill(Gallery(tmp_path / "other", SETTINGS, RECIPE.prompts, {}), judges, 2, memory=False))


def test_a_folder_of_other_settings_or_prompts_is_refused(gallery):
    with pytest.raises(DatoError, match=r"other settings: steps \(steps was 4 and is 5\)"):
        again(gallery, steps=5)
    with pytest.raises(DatoError, match="other settings: sampler"):
        again(gallery, sampler="ddim")
    with pytest.raises(DatoError, match="other prompts"):
        again(gallery, ["cat", *RECIPE.prompts[1:]])
    with pytest.raises(DatoError, match="cannot be called 'stock'"):
        again(gallery, contenders={STOCK: Schedule.full(3)})
    again(gallery, RECIPE.prompts[:1])
    again(gallery)  # fewer prompts in between have not made it forget


def test_settings_tell_samplers_of_one_class_apart(judges):
    facts = judges.facts
    karras = replace(facts, scheduler_name="dpm++2m-karras")
    assert settings_of(RECIPE, facts) != settings_of(RECIPE, karras)
    assert settings_of(RECIPE, facts)["hardware"] == facts.hardware
    assert settings_of(RECIPE, facts)["clip"] == "emoji-sd"  # and not where it lies


def test_a_damaged_file_is_named(tmp_path):
    one = Gallery(tmp_path, SETTINGS, RECIPE.prompts, {"a/b": Schedule.full(3), "a b": Schedule.full(3)})
    one.put("a/b", 0, 1, Batch({"psnr": torch.ones(1)}, 2.0, 1.0, 4.0, None, None, (b"png",)))
    assert one.get("a/b", 0, 1).measured["psnr"] == 1 and one.get("a/b", 0, 1).peak_bytes is None
    assert not one.has("a b", 0, 1, ["psnr"])  # names that differ in signs only are different methods
    [path] = tmp_path.glob("a-b-*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DatoError, match=r"00000-00001\.safetensors is damaged"):
        one.get("a/b", 0, 1)


def test_prompts_belong_to_their_own_images(judges, gallery):
    score = load_metric("clip-score", Setup())
    images = gallery.images(STOCK, 8)
    own = rows(gallery, judges, 2)[0][STOCK].metrics["clip-score"]
    assert len(images) == 3 and own == pytest.approx(score(images, RECIPE.prompts, images), abs=0.3)
    assert own != pytest.approx(score(images, RECIPE.prompts[::-1], images), abs=0.3)


def test_every_method_runs_and_a_name_means_one_thing(make_pipe):
    """Of ten steps, so that every share of them is there."""
    sampling = replace(RECIPE.sampling, steps=10)
    evaluator = Evaluator(make_pipe(), RECIPE.prompts[:1], sampling, [], steps=(2, 3, 4, 5))
    facts = facts_of(evaluator)
    assert facts.downsamplings[0] == 1 and len(facts.downsamplings) >= 3
    families = methods(known_methods(list(METHODS)), facts)
    every = [item for family in families.values() for item in family.items()]
    contenders = dict(every)
    assert all(contenders[name] == contender for name, contender in every) and len(ABLATIONS) == 6
    assert {"10 steps, 50% pruned", "2 steps", "2 steps, 50% pruned"} <= set(families["sito-steps"])
    stock = evaluator.generate(None, RECIPE.prompts[:1], sampling).images
    seen = {}
    for name, contender in contenders.items():
        if contender not in seen:
            seen[contender] = evaluator.generate(contender, RECIPE.prompts[:1], sampling).images
        assert not torch.equal(seen[contender], stock), name


def test_a_short_reference_has_fewer_methods(judges):
    facts = facts_of(Evaluator(judges.evaluator.pipe, RECIPE.prompts, replace(RECIPE.sampling, steps=2), []))
    for family in methods(["sito-steps", "order1", "steps", "deepcache"], facts).values():
        assert all(len(contender) == facts.calls for contender in family.values())
