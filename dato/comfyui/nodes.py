"""Describe dato's nodes to ComfyUI, by its newer interface (V3) or, where that is missing, by the older one (V1)."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from dato.comfyui.inputs import CATEGORY, NODES, Input, Node

_OUTPUTS = (("MODEL", "model"), ("STRING", "summary"))


def exports() -> dict[str, Any]:
    """Return what the module of a folder in `custom_nodes` has to contain."""
    api = newer_interface()
    if api is not None:
        return {"comfy_entrypoint": entrypoint(api)}
    return {
        "NODE_CLASS_MAPPINGS": {node.id: older_class(node) for node in NODES},
        "NODE_DISPLAY_NAME_MAPPINGS": {node.id: node.title for node in NODES},
    }


def newer_interface() -> ModuleType | None:
    """Return ComfyUI's `comfy_api.latest`; None if there is none, or one without nodes."""
    try:
        api = importlib.import_module("comfy_api.latest")
    except ImportError:
        return None
    return api if hasattr(api, "ComfyExtension") and hasattr(getattr(api, "io", None), "ComfyNode") else None


def entrypoint(api: ModuleType) -> Any:
    """Return the function that ComfyUI calls to get the nodes."""

    class Extension(api.ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return [newer_class(node, api.io) for node in NODES]

    async def comfy_entrypoint() -> Any:
        return Extension()

    return comfy_entrypoint


def newer_class(node: Node, io: Any) -> type:
    """Return a node's class in the newer interface."""

    class DatoNode(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            return io.Schema(
                node_id=node.id,
                display_name=node.title,
                category=CATEGORY,
                description=node.description,
                inputs=[io.Model.Input("model"), *(_newer_input(one, io) for one in node.inputs)],
                outputs=[io.Model.Output(display_name="model"), io.String.Output(display_name="summary")],
                hidden=[io.Hidden.unique_id],
            )

        @classmethod
        def execute(cls, model: Any, **inputs: Any) -> Any:
            return io.NodeOutput(*node.run(model, node=getattr(cls.hidden, "unique_id", None), **inputs))

        @classmethod
        def fingerprint_inputs(cls, **inputs: Any) -> Any:
            return node.fingerprint(**inputs)

    DatoNode.__name__ = DatoNode.__qualname__ = node.id
    return DatoNode


def _newer_input(one: Input, io: Any) -> Any:
    kinds = {"FLOAT": io.Float, "INT": io.Int, "BOOLEAN": io.Boolean, "STRING": io.String, "COMBO": io.Combo}
    options: dict[str, Any] = {"default": one.default, "tooltip": one.tooltip}
    if one.limits is not None:
        options |= dict(zip(("min", "max", "step"), one.limits, strict=True))
    if one.options:
        options["options"] = list(one.options)
    return kinds[one.kind].Input(one.name, **options)


def older_class(node: Node) -> type:
    """Return a node's class in the older interface."""

    def input_types(cls: type) -> dict[str, Any]:
        inputs = {one.name: _older_input(one) for one in node.inputs}
        return {"required": {"model": ("MODEL",), **inputs}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def run(self: Any, model: Any, unique_id: str | None = None, **inputs: Any) -> tuple[Any, str]:
        return node.run(model, node=unique_id, **inputs)

    def is_changed(cls: type, model: Any = None, unique_id: str | None = None, **inputs: Any) -> Any:
        return node.fingerprint(**inputs)

    attributes = {
        "INPUT_TYPES": classmethod(input_types),
        "IS_CHANGED": classmethod(is_changed),
        "RETURN_TYPES": tuple(kind for kind, _ in _OUTPUTS),
        "RETURN_NAMES": tuple(name for _, name in _OUTPUTS),
        "FUNCTION": "run",
        "CATEGORY": CATEGORY,
        "DESCRIPTION": node.description,
        "run": run,
    }
    return type(node.id, (), attributes)


def _older_input(one: Input) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {"default": one.default, "tooltip": one.tooltip}
    if one.limits is not None:
        options |= dict(zip(("min", "max", "step"), one.limits, strict=True))
    return (list(one.options) if one.kind == "COMBO" else one.kind), options
