"""Every pipeline with every sampler."""

import pytest
from pipeline_features import SAMPLERS, check
from tiny_pipelines import PIPELINES, tiny

from dato.samplers import set_scheduler


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PIPELINES)
def test_sampler(name, sampler, record_property):
    record_property("cell", [name, sampler])
    if name == "LCM" and sampler != "lcm":
        pytest.skip("its pipeline asks the sampler for what only LCM's has")
    pipe, kwargs = tiny(name)
    set_scheduler(pipe, sampler)
    check(pipe, kwargs)
