"""How the nodes are described to ComfyUI, by both interfaces; and the folders that hold them."""

import asyncio
import json
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import stand_in

import dato
from dato.comfyui.inputs import NODES, OTHER, RULE
from dato.comfyui.nodes import exports
from dato.errors import DatoError

ROOT = Path(__file__).parents[2]


def newer_interface() -> types.ModuleType:
    """A stand-in of ComfyUI's newer interface."""

    def kind(name):
        def build(id=None, **options):
            return SimpleNamespace(kind=name, id=id, **options)

        return SimpleNamespace(Input=build, Output=build)

    class ComfyNode:
        hidden = SimpleNamespace(unique_id="7")

    names = ("Model", "Float", "Int", "Boolean", "String", "Combo")
    io = SimpleNamespace(
        ComfyNode=ComfyNode,
        Schema=SimpleNamespace,
        NodeOutput=lambda *values: values,
        Hidden=SimpleNamespace(unique_id="UNIQUE_ID"),
        **{name: kind(name) for name in names},
    )
    module = types.ModuleType("comfy_api.latest")
    module.io, module.ComfyExtension = io, object
    return module


@pytest.fixture
def newer(monkeypatch):
    module = newer_interface()
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", module)
    extension = asyncio.run(exports()["comfy_entrypoint"]())
    return asyncio.run(extension.get_node_list())


@pytest.fixture
def older(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_api.latest", None)  # there is none
    return exports()


def test_the_newer_interface(newer):
    schema = newer[0].define_schema()
    assert [node.define_schema().node_id for node in newer] == ["DatoApplySchedule", "DatoPruneTokens"]
    assert [one.id for one in schema.inputs] == [
        "model",
        "schedule",
        "path",
        "pick",
        "speedup",
        "quality",
        "start",
        "end",
    ]
    assert [one.kind for one in schema.outputs] == ["Model", "String"]
    assert schema.inputs[1].options[0] == RULE and "dato-published" in schema.inputs[1].options
    assert all(one.default in one.options for one in schema.inputs if one.kind == "Combo")


def test_the_older_interface(older):
    classes = older["NODE_CLASS_MAPPINGS"]
    assert older["NODE_DISPLAY_NAME_MAPPINGS"]["DatoPruneTokens"] == "dato: prune tokens"
    for node in NODES:
        kind = classes[node.id]
        inputs = kind.INPUT_TYPES()
        assert list(inputs["required"]) == ["model", *(one.name for one in node.inputs)]
        assert kind.RETURN_TYPES == ("MODEL", "STRING") and callable(getattr(kind(), kind.FUNCTION))
        json.dumps(inputs)  # the interface gets it so


def defaults(node):
    return {one.name: one.default for one in node.inputs}


def test_both_run_and_show_what_will_run(newer, older, monkeypatch):
    shown = []
    server = SimpleNamespace(instance=SimpleNamespace(send_progress_text=lambda text, node: shown.append((node, text))))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=server))
    model = stand_in.patcher()
    for node, kind in zip(NODES, newer, strict=True):
        made, text = kind.execute(model, **defaults(node))
        assert made is not model and shown[-1] == ("7", text) and text
        old = older["NODE_CLASS_MAPPINGS"][node.id]()
        assert getattr(old, old.FUNCTION)(model, **defaults(node), unique_id="8")[1] == text
        assert shown[-1] == ("8", text)


def test_after_a_run_the_node_shows_what_ran(older, monkeypatch):
    shown = []
    server = SimpleNamespace(instance=SimpleNamespace(send_progress_text=lambda text, node: shown.append((node, text))))
    node = older["NODE_CLASS_MAPPINGS"]["DatoApplySchedule"]()
    model, _ = node.run(stand_in.patcher(), **defaults(NODES[0]), unique_id="8")
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=server))
    stand_in.Guider(model).sample(stand_in.noise(), stand_in.sampler())
    assert len(shown) == 1 and shown[0][0] == "8" and shown[0][1].startswith("7 calls: ")


def test_a_file(older, tmp_path):
    node, file = older["NODE_CLASS_MAPPINGS"]["DatoApplySchedule"], tmp_path / "mine.json"
    inputs = {**defaults(NODES[0]), "schedule": OTHER, "path": str(file)}
    assert node.IS_CHANGED(**inputs) is None
    file.write_text(dato.Schedule.uniform(8, 2, 1, rungs=6).to_json(), "utf-8")
    assert node.IS_CHANGED(**inputs) == file.stat().st_mtime
    assert "8 calls: 4 whole, 4 at depth 1" in node().run(stand_in.patcher(), **inputs)[1]
    with pytest.raises(DatoError, match="`path` is empty"):
        node().run(stand_in.patcher(), **inputs | {"path": " "})


def test_the_example_workflow():
    flow = json.loads((ROOT / "comfyui" / "example_workflows" / "dato.json").read_text("utf-8"))
    by_id = {node["id"]: node for node in flow["nodes"]}
    ours = [node for node in flow["nodes"] if node["type"] == NODES[0].id]
    assert [node["widgets_values"] for node in ours] == [[one.default for one in NODES[0].inputs]]
    for number, start, output, end, slot, kind in flow["links"]:
        assert number in by_id[start]["outputs"][output]["links"] and by_id[end]["inputs"][slot]["link"] == number
        assert by_id[start]["outputs"][output]["type"] == kind


def test_the_folder_for_the_registry(older):
    namespace = {}
    exec((ROOT / "comfyui" / "__init__.py").read_text("utf-8"), namespace)
    assert set(older) <= set(namespace)
    written = (ROOT / "comfyui" / "pyproject.toml").read_text("utf-8")
    assert re.search(r'^version = "(.*)"$', written, re.MULTILINE)[1] == dato.__version__
    assert "[tool.comfy]" in written
