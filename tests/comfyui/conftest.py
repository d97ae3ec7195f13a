import sys
import types

import pytest
import stand_in


@pytest.fixture(autouse=True)
def comfy(monkeypatch):
    """What dato imports of ComfyUI."""
    package, extension = types.ModuleType("comfy"), types.ModuleType("comfy.patcher_extension")
    extension.WrappersMP = stand_in.WrappersMP
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)
