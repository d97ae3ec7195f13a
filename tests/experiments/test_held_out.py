"""Evaluation in batches: batches on the disk are not made again, and images are measured before they are stored."""

from dataclasses import replace

import pytest
import torch
from conftest import PROMPTS, toy_recipe

from dato import DatoError, Schedule
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.methods import STOCK, schedule_method, stock_method, tomesd_method
from dato.evaluation.pool import InProcess, facts_of
from dato.experiments.held_out import fill, rows, settings_of, stock_of
from dato.experiments.image_store import Batch, ImageStore
from dato.experiments.method_families import FAMILIES, check_families, families_of
from dato.experiments.sito_ablations import ABLATIONS
from dato.metrics import Setup, load_metric
from dato.utils.images import read_image

RECIPE = replace(toy_recipe(4, 3, 2, "psnr", "clip-score", "frechet", size=64), prompts=tuple(PROMPTS))
SETTINGS = {"model": "emoji-sd", "steps": 4}
METHODS = [schedule_method(Schedule.uniform(4, 2, 1), "N=2 d=1"), schedule_method(Schedule.full(3), "3 steps")]
NAMES = [method.name for method in METHODS]
WHOLE = stock_method(Schedule.full(4))


@pytest.fixture(scope="module")
def pool():
    pool = InProcess(RECIPE.evaluator())
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def store(pool, tmp_path_factory):
    store = ImageStore(tmp_path_factory.mktemp("store"), SETTINGS, RECIPE.prompts, WHOLE, METHODS)
    assert list(fill(store, pool, 2)) == [(0, 2), (1, 2), (2, 2)]
    return store


@pytest.fixture
def asked(monkeypatch):
    """The schedules that are generated, in turn."""
    seen = []
    plain = Evaluator.generate
    monkeypatch.setattr(Evaluator, "generate", lambda self, *a, **k: seen.append(a[0].schedule) or plain(self, *a, **k))
    return seen


def again(store, prompts=RECIPE.prompts, methods=METHODS, **settings):
    return ImageStore(store.folder, SETTINGS | settings, prompts, WHOLE, methods)


def test_rows_are_what_the_metrics_say_of_all_images_at_once(pool, store):
    found, failed = rows(store, pool, 2)
    assert list(found) == [STOCK, *NAMES] and failed == {}
    evaluator = pool.evaluator
    reference = evaluator.generate(WHOLE, evaluator.prompts, RECIPE.sampling).images
    for name, method in store.methods.items():
        images = evaluator.generate(method, evaluator.prompts, RECIPE.sampling).images
        for metric in evaluator.metrics:
            expected = metric(images, evaluator.prompts, reference)
            assert found[name].metrics[metric.name] == pytest.approx(expected, rel=1e-4)
        for index, image in enumerate(images):
            assert (read_image(store.path(name, index)) - image).abs().max() <= 0.51 / 255
        assert 0 < found[name].unet_ms < found[name].latency_ms and found[name].peak_bytes > 2**20
    assert found[STOCK].metrics["psnr"] == 100 > found["N=2 d=1"].metrics["psnr"] and found[STOCK].speedup == 1


def test_only_what_is_missing_is_made(pool, store, asked):
    before, _ = rows(store, pool, 2)
    same = again(store)
    assert list(fill(same, pool, 2)) == [(2, 2)] and not asked
    # A killed run left no measurements of one batch.
    [lost] = store.path("3 steps", 2).parent.glob("00002-00003.safetensors")
    lost.unlink()
    assert list(fill(same, pool, 2)) == [(1, 2), (2, 2)]
    assert asked == [Schedule.full(4), Schedule.full(3)]  # stock, to measure beside, and the one that is missing
    after, _ = rows(store, pool, 2)
    assert {n: r.metrics for n, r in after.items()} == {n: r.metrics for n, r in before.items()}


@pytest.mark.thorough
def test_more_prompts_and_methods_are_added_to_what_is_there(pool, tmp_path, asked):
    first = ImageStore(tmp_path, SETTINGS, RECIPE.prompts[:1], WHOLE, METHODS[1:])
    few = replace(RECIPE, prompts=RECIPE.prompts[:1])
    list(fill(first, InProcess(few.evaluator()), 2, memory=False))
    assert asked == [Schedule.full(4), Schedule.full(3)]
    whole = again(first)
    first_seen, *_ = fill(whole, pool, 2, memory=False)
    assert first_seen == (0, 2)  # a batch of one is no part of a batch of two
    found, _ = rows(whole, pool, 2)
    del asked[:]
    new = Schedule.uniform(4, 3, 0)
    other = again(first, methods=[METHODS[1], schedule_method(new, "new")])
    list(fill(other, pool, 2, memory=False))
    assert asked == [Schedule.full(4), new] * 2
    assert rows(other, pool, 2)[0]["3 steps"].metrics == found["3 steps"].metrics


def test_another_schedule_of_the_same_name_is_another_method(pool, store, asked):
    changed = again(store, methods=[schedule_method(Schedule.uniform(4, 2, 2), "N=2 d=1"), METHODS[1]])
    list(fill(changed, pool, 2))
    assert set(asked) == {Schedule.full(4), Schedule.uniform(4, 2, 2)}
    assert rows(changed, pool, 2)[0]["N=2 d=1"].metrics != rows(store, pool, 2)[0]["N=2 d=1"].metrics


def test_a_new_metric_is_measured_on_images_made_again(store, asked):
    more = InProcess(replace(RECIPE, metrics=("psnr", "ssim", "clip-score", "frechet")).evaluator())
    list(fill(again(store), more, 2, memory=False))
    assert len(asked) == 2 * 3
    assert rows(again(store), more, 2)[0]["3 steps"].metrics["ssim"] < 1


def test_speedups_are_those_of_each_turn_and_of_whole_batches(pool, tmp_path):
    store = ImageStore(tmp_path, SETTINGS, RECIPE.prompts, WHOLE, METHODS)
    score = {name: torch.ones(2) for name in ("psnr", "clip-score")} | {"frechet": torch.rand(2, 128)}
    for name in store.methods:
        own = 10.0 if name == STOCK else 5.0
        store.put(name, 0, 2, Batch(score, own, 1.0, stock_ms=20.0))
        store.put(name, 2, 3, Batch({n: x[:1] for n, x in score.items()}, own * 9, 1.0, stock_ms=1.0))
    found, _ = rows(store, pool, 2)
    assert found["3 steps"].speedup == 4 and found["3 steps"].latency_ms == 5


def test_who_runs_out_of_memory_or_gives_black_images_is_told(pool, tmp_path, monkeypatch):
    plain = Evaluator.generate

    def failing(self, method, *arguments, **options):
        if method.schedule == Schedule.full(3):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        made = plain(self, method, *arguments, **options)
        return made if method.name == STOCK else replace(made, images=made.images * 0)

    monkeypatch.setattr(Evaluator, "generate", failing)
    store = ImageStore(tmp_path, SETTINGS, RECIPE.prompts, WHOLE, METHODS)
    list(fill(store, pool, 2, memory=False))
    found, failed = rows(store, pool, 2)
    assert failed == {"3 steps": "out of memory"} and found["N=2 d=1"].failure == "it gives black images"
    list(fill(store, pool, 2, memory=False))  # what failed is not tried again

    def broken(self, method, *arguments, **options):
        made = plain(self, method, *arguments, **options)
        return replace(made, images=made.images * torch.nan)

    monkeypatch.setattr(Evaluator, "generate", broken)
    with pytest.raises(DatoError, match="stock's images are not finite"):
        list(fill(ImageStore(tmp_path / "other", SETTINGS, RECIPE.prompts, WHOLE, []), pool, 2, memory=False))


def test_a_folder_of_other_settings_or_prompts_is_refused(store):
    with pytest.raises(DatoError, match=r"other settings: steps \(steps was 4 and is 5\)"):
        again(store, steps=5)
    with pytest.raises(DatoError, match="other settings: sampler"):
        again(store, sampler="ddim")
    with pytest.raises(DatoError, match="other prompts"):
        again(store, ["cat", *RECIPE.prompts[1:]])
    with pytest.raises(DatoError, match="cannot be called 'stock'"):
        again(store, methods=[schedule_method(Schedule.full(3), STOCK)])
    again(store, RECIPE.prompts[:1])
    again(store)  # fewer prompts in between have not made it forget


def test_settings_tell_samplers_of_one_class_apart(pool):
    facts = pool.facts
    karras = replace(facts, scheduler_name="dpm++2m-karras")
    assert settings_of(RECIPE, facts) != settings_of(RECIPE, karras)
    assert settings_of(RECIPE, facts)["hardware"] == facts.hardware
    assert settings_of(RECIPE, facts)["clip"] == "emoji-sd"  # and not where it lies


def test_a_damaged_file_is_named(tmp_path):
    one = ImageStore(
        tmp_path,
        SETTINGS,
        RECIPE.prompts,
        WHOLE,
        [schedule_method(Schedule.full(3), name) for name in ("a/b", "a b")],
    )
    one.put("a/b", 0, 1, Batch({"psnr": torch.ones(1)}, 2.0, 1.0, 4.0, None, None, (b"png",)))
    assert one.get("a/b", 0, 1).measured["psnr"] == 1 and one.get("a/b", 0, 1).peak_bytes is None
    assert not one.has("a b", 0, 1, ["psnr"])  # names that differ in signs only are different methods
    [path] = tmp_path.glob("a-b-*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DatoError, match=r"00000-00001\.safetensors is damaged"):
        one.get("a/b", 0, 1)


def test_prompts_belong_to_their_own_images(pool, store):
    score = load_metric("clip-score", Setup())
    images = store.images(STOCK, 8)
    own = rows(store, pool, 2)[0][STOCK].metrics["clip-score"]
    assert len(images) == 3 and own == pytest.approx(score(images, RECIPE.prompts, images), abs=0.3)
    assert own != pytest.approx(score(images, RECIPE.prompts[::-1], images), abs=0.3)


@pytest.mark.thorough
def test_every_method_runs_and_a_name_means_one_thing(make_pipe):
    """Of ten steps, so that every share of them is there."""
    sampling = replace(RECIPE.sampling, steps=10)
    evaluator = Evaluator(make_pipe(), RECIPE.prompts[:1], sampling, [], steps=(2, 3, 4, 5))
    facts = facts_of(evaluator)
    assert facts.downsamplings[0] == 1 and len(facts.downsamplings) >= 3
    check_families(list(FAMILIES))
    families = families_of(list(FAMILIES), facts)
    every = [method for family in families.values() for method in family]
    by_name = {method.name: method for method in every}
    assert all(by_name[method.name] == method for method in every) and len(ABLATIONS) == 6
    names = {method.name for method in families["sito-steps"]}
    assert {"10 steps, 50% pruned", "2 steps", "2 steps, 50% pruned", "2 steps, ToMeSD 50%"} <= names
    assert "ToMeSD 50% to downsampling 8" in {method.name for method in families["deeper-blocks"]}
    # Tables 2 and 3 of the SiTo paper are of SiTo-b.
    for table, count in (("layers", 6), ("base-tokens", 7)):
        ours = [method for method in families[table] if method.version is None]
        assert len(families[table]) == count and {r for m in ours for r in m.schedule.ratios} == {0.4}
    assert families["base-tokens"][-1].name == "ToMeSD 40%"
    stock = evaluator.generate(stock_of(facts), RECIPE.prompts[:1], sampling).images
    seen = {}
    for method in every:
        if method.identity not in seen:
            seen[method.identity] = evaluator.generate(method, RECIPE.prompts[:1], sampling).images
        assert not torch.equal(seen[method.identity], stock), method.name


def test_a_short_reference_has_fewer_methods(pool):
    facts = facts_of(Evaluator(pool.evaluator.pipe, RECIPE.prompts, replace(RECIPE.sampling, steps=2), []))
    for family in families_of(["sito-steps", "order1", "steps", "deepcache"], facts).values():
        assert all(len(method.schedule) == facts.calls for method in family)


def test_folders_of_earlier_versions_are_found(tmp_path):
    tomesd = replace(tomesd_method(0.5, Schedule.full(4)), version="0.1.3")
    store = ImageStore(tmp_path, SETTINGS, RECIPE.prompts, WHOLE, [*METHODS, tomesd])
    names = {name: store.path(name, 0).parent.name for name in store.methods}
    assert names == {
        "stock": "stock-d202a9fc",
        "N=2 d=1": "n-2-d-1-df760e74",
        "3 steps": "3-steps-5365360b",
        "ToMeSD 50%": "tomesd-50-0ff3dd12",
    }
