"""Every pipeline with every sampler."""

import pytest
from test_compatibility import check
from tiny_pipelines import PIPELINES, tiny

from dato.samplers import set_scheduler

SAMPLERS = (
    "plms",
    "ddim",
    "ddpm",
    "euler",
    "euler-a",
    "dpm++2m",
    "dpm++2m-karras",
    "dpm++2m-sde",
    "dpm++sde",
    "heun",
    "unipc",
    "lms",
    "lcm",
)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PIPELINES)
def test_sampler(name, sampler, record_property):
    record_property("cell", [name, sampler])
    if name == "LCM" and sampler != "lcm":
        pytest.skip("its pipeline asks the sampler for what only LCM's has")
    pipe, kwargs = tiny(name)
    set_scheduler(pipe, sampler)
    check(pipe, kwargs)
