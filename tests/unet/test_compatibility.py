"""Every pipeline, with every feature and every sampler, on the same line of code.

`pytest tests/unet/test_compatibility.py tests/unet/test_samplers.py --matrix docs/supported.md` writes what passed as a
table.
"""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from conftest import ROOT
from matrix import cells_of
from pipeline_features import FEATURES, INVISIBLE, NEEDS, cells, check, plainly
from tiny_pipelines import PIPELINES, tiny

import dato


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline(name, record_property):
    record_property("cell", [name, "alone"])
    check(*tiny(name), thorough=True, steps=6)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", PIPELINES)
def test_feature(name, feature, record_property):
    record_property("cell", [name, feature])
    pipe, kwargs = tiny(name)
    needs = NEEDS.get(feature)
    if needs is not None and needs not in inspect.signature(type(pipe).__call__).parameters:
        pytest.skip(f"{type(pipe).__name__} has no {needs}")
    # What `torch.compile` does with the UNet itself is another test's affair, and takes minutes.
    compiled = "compiled" in feature
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        more = FEATURES[feature](pipe, kwargs) or {}
        dato.remove_patch(pipe)
        expected = plainly(name) if feature in INVISIBLE else None
        check(pipe, {**kwargs, **more}, exact=not compiled, expected=expected)


def test_the_table_in_the_docs_is_of_these_pipelines_features_and_samplers():
    signs = cells_of((ROOT / "docs" / "supported.md").read_text(encoding="utf-8"))
    assert set(signs) == set(cells()) and set(signs.values()) == {"✓", "–"}
