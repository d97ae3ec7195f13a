"""The JSON Schemas: they describe every key, and refuse what dato refuses."""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import jsonschema
import pytest

import dato
from dato import DatoError, Front, Point, Pruning, Schedule
from dato.forecast_rule import FORECASTS
from dato.front import _CONDITIONS
from dato.metrics import METRICS, OPTIONS
from dato.pruning import RECOVERIES, REDUCTIONS, SCORES, SIMILARITIES
from dato.strategies import load_strategy, strategies

SCHEMAS = {"front": dato.front_schema(), "schedule": dato.schedule_schema()}
CHECKS = {name: jsonschema.Draft202012Validator(schema) for name, schema in SCHEMAS.items()}
READERS = {"front": Front.from_dict, "schedule": Schedule.from_dict}
# Values that a key may be replaced by. Some are valid for some keys.
VALUES = (
    *(None, True, False, 0, 1, 2, 3, 13, -1, 0.5, 1.5, -0.5, 10**301, -(10**301), 2**64, -(2**63) - 1),
    *("", "x", "base", "kept", "local", "merge", "II", "dato", "aligned", "hope", "dato.front", "dato.schedule"),
    *([], [0], [12], [12, 1], [12, 0, 1], [12, 13, 1], [1, 12, 12], [0.5, 0.5, 0.5], [0, 1, 2], [0, 3, 0], [12, -1, 0]),
    *([True, True, True], ["a", "b", "c"], [[12]], {}, {"x": 1}, {"x": "y"}, {"quality": 3.0}, [{}], {"x": {}}),
    *({"sx": 1, "sy": 1}, {"sx": 1}, {"seed": 0.5}, {"choose_every": 2, "shared": False}, {"choose_every": 2}),
    *({"reduction": "merge", "recover_from": "kept"}, {"similarity": "local", "score": "III"}, {"calls": 3}),
)
# What dato says of a file that breaks a rule which a JSON Schema cannot state.
UNSAYABLE = (
    "the first call must run the whole UNet",
    "they must be as many",
    "the search had",
    "is not a whole number from 0 to",
)


def front_data() -> dict[str, Any]:
    """A front with every key in it."""
    point = Point(Schedule([12, 1, 0], [0, 0.5, 0], [1, 1, 0], forecast="aligned"), 30.0, 25.0, 4.0, {"psnr": 30.0})
    stock = Point(Schedule.full(3), 100.0, 100.0, 1.0)
    conditions = {"calls": 3, "quality": "psnr", "model": "m", "config": "c", "variant": "fp16", "dtype": "float32"}
    conditions |= {"height": 64, "width": 64, "steps": 3, "batch_size": 2, "guidance_scale": 7.5, "clip": None}
    conditions |= {"scheduler_name": "ddim", "prompts": ["a"], "statistics": None, "hardware": "a GPU"}
    point = replace(point, steps=3, scheduler="dpm++2m")
    return Front((point,), stock, {"other": point}, conditions).to_dict()


def schedule_data() -> dict[str, Any]:
    """A schedule with every key in it."""
    schedule = Schedule([12, 1, 0], [0, 0.5, 0], [1, 1, 0], forecast="aligned")
    return schedule.to_dict() | {"name": "n", "source": "s"}


DATA = {"front": front_data(), "schedule": schedule_data()}
POINT = DATA["front"]["front"][0]


def places(data: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of each object and list of objects in `data`, and of each key in them."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (*path, key)
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            yield from places(value, (*path, key))


def mutants(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(what was changed, data) for each value instead of each key, each key left out, and a key too much in each."""
    for path in places(data):
        if len(path) > 2 and path[0] == "references":
            continue  # its points are as the others
        for value in VALUES:
            yield f"{path} = {value!r}", changed(data, path, value)
        yield f"{path} left out", changed(data, path)
        if isinstance(find(data, path), dict):
            yield f"{path} with an unknown key", changed(data, (*path, "unknown"), 1.5)
    yield "an unknown key", changed(data, ("unknown",), 1.5)
    yield from ((f"{value!r} alone", value) for value in VALUES)


def find(data: Any, path: tuple) -> Any:
    for key in path:
        data = data[key]
    return data


def changed(data: Any, path: tuple, *value: Any) -> Any:
    """A copy with another value at a path, or without it."""
    data = copy.deepcopy(data)
    place = find(data, path[:-1])
    if value:
        place[path[-1]] = value[0]
    else:
        del place[path[-1]]
    return data


def said(kind: str, data: Any) -> str | None:
    """What dato says against a file; None if it takes it."""
    try:
        READERS[kind](data)
    except DatoError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert CHECKS[name].is_valid(DATA[name]) and said(name, DATA[name]) is None


@pytest.mark.parametrize("name", strategies())
def test_shipped_strategies_are_valid(name):
    data = json.loads(strategies()[name].read_text("utf-8"))
    kind = data["format"].removeprefix("dato.")
    CHECKS[kind].validate(data)
    CHECKS[kind].validate(load_strategy(name).to_dict())


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_the_schema_refuses_dato_refuses_and_the_other_way_round(kind):
    refused = taken = 0
    for what, data in mutants(DATA[kind]):
        message, valid = said(kind, data), CHECKS[kind].is_valid(data)
        refused, taken = refused + (message is not None), taken + (message is None)
        if message is None:
            assert valid, f"{what}: the schema refuses it, dato takes it"
        elif valid:
            assert any(text in message for text in UNSAYABLE), f"{what}: the schema takes it, dato says {message}"
    assert refused > 200 and taken > 50


FAULTS = {
    "an unknown version": (("version",), 2),
    "a version that is no number": (("version",), "1"),
    "another format": (("format",), "dato"),
    "no rungs": (("rungs",), 0),
    "an order above 2": (("front", 0, "orders", 1), 3),
    "a ratio of 1": (("front", 0, "ratios", 1), 1),
    "a negative depth": (("front", 0, "depths", 1), -1),
    "a depth with a fraction": (("front", 0, "depths", 1), 1.5),
    "an unknown forecast": (("front", 0, "forecast"), "hope"),
    "no latency": (("front", 0, "latency_ms"), 0),
    "a quality that is text": (("front", 0, "quality"), "good"),
    "such a quality behind a metric of that name": (("front", 0), POINT | {"quality": "x", "metrics": {"quality": 1}}),
    "a metric that is null": (("front", 0, "metrics", "psnr"), None),
    "no steps": (("front", 0, "steps"), 0),
    "a sampler that is a number": (("front", 0, "scheduler"), 3),
    "no point": (("front",), []),
    "references in a list": (("references",), []),
    "a number of calls that is true": (("conditions", "calls"), True),
    "a size that is true": (("conditions", "height"), True),
    "prompts that are text": (("conditions", "prompts"), "a"),
    "an unknown setting of pruning": (("pruning", "patch"), 2),
    "an unknown score": (("pruning", "score"), "best"),
    "a patch of one token": (("pruning",), {"sx": 1, "sy": 1}),
    "merging with another recovery": (("pruning",), {"reduction": "merge", "recover_from": "past"}),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_both_refuse(what):
    path, value = FAULTS[what]
    data = changed(DATA["front"], path, value)
    assert said("front", data) is not None and not CHECKS["front"].is_valid(data)


@pytest.mark.parametrize("path", [p for p in places(DATA["front"]) if p[0] != "front" or len(p) < 4])
def test_both_agree_on_which_keys_a_front_needs(path):
    data = changed(DATA["front"], path)
    assert (said("front", data) is None) == CHECKS["front"].is_valid(data)


@pytest.mark.parametrize("key", ["name", "source"])
def test_both_refuse_a_name_that_is_no_text(key):
    data = DATA["schedule"] | {key: 3}
    assert said("schedule", data) == f"schedule: {key} must be text, not 3" and not CHECKS["schedule"].is_valid(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("front", 0, "depths"), [12, 13, 0]),
        (("front", 0, "depths"), [1, 12, 0]),
        (("front", 0, "orders"), [1, 1]),
        (("front", 0, "depths", 1), 1.0),
        (("conditions", "calls"), 4),  # the baseline says no steps of its own
    ],
)
def test_what_a_schema_cannot_say_dato_refuses(path, value):
    """If one of these fails because the schema refuses it, its description says too much."""
    data = changed(DATA["front"], path, value)
    assert CHECKS["front"].is_valid(data) and any(text in said("front", data) for text in UNSAYABLE)


def test_a_front_that_a_test_writes_is_compared_with_the_schema(monkeypatch):
    """See conftest.py, which does this for all tests."""
    front = Front.from_dict(DATA["front"])
    monkeypatch.setattr(Point, "to_dict", lambda self: {"depths": [12]})
    with pytest.raises(jsonschema.ValidationError, match="'ratios' is a required property"):
        front.to_dict()


def test_the_two_schemas_define_the_same():
    front, schedule = (SCHEMAS[name]["$defs"] for name in ("front", "schedule"))
    assert {name: value for name, value in front.items() if name != "point"} == schedule


def test_the_schema_has_the_settings_and_names_of_the_code():
    settings = SCHEMAS["schedule"]["$defs"]["pruning"]["properties"]
    assert {name: setting["default"] for name, setting in settings.items()} == asdict(Pruning())
    assert list(settings) == [field.name for field in fields(Pruning)]
    names = {"score": SCORES, "recover_from": RECOVERIES, "similarity": SIMILARITIES, "reduction": REDUCTIONS}
    assert {name: tuple(settings[name]["enum"]) for name in names} == names
    assert tuple(SCHEMAS["schedule"]["$defs"]["forecast"]["enum"]) == FORECASTS
    assert SCHEMAS["schedule"]["properties"]["rungs"]["default"] == Schedule([12]).rungs
    described = SCHEMAS["front"]["properties"]["conditions"]["properties"]
    written = {key for name in strategies() for key in getattr(load_strategy(name), "conditions", ())}
    assert written | set(_CONDITIONS) | set(OPTIONS) <= set(described)
    assert set(METRICS) <= set(SCHEMAS["front"]["$defs"]["point"]["properties"]["metrics"]["properties"])


def properties(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key that a schema describes."""
    for name, value in schema.items() if isinstance(schema, dict) else ():
        if name == "properties":
            yield from ((f"{path}/{key}", told) for key, told in value.items())
        if name not in ("allOf", "if", "then", "not"):
            yield from properties(value, f"{path}/{name}")


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_key_is_described_and_every_number_has_its_unit(kind):
    definitions, seen = SCHEMAS[kind]["$defs"], 0
    for path, told in properties(SCHEMAS[kind]):
        whole = definitions[told["$ref"].rpartition("/")[2]] | told if "$ref" in told else told
        assert whole.get("description", "").endswith("."), path
        types = {whole.get("type")} if isinstance(whole.get("type"), str) else set(whole.get("type", ()))
        if types & {"number", "integer"} and not path.endswith(("/version", "/seed")):
            assert "Unit: " in whole["description"] or "No unit" in whole["description"], path
            seen += 1
    assert seen > 10 if kind == "front" else seen > 5
