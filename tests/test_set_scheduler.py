"""`set_scheduler` keeps a model's noise schedule and kind of prediction, or says why it cannot."""

import diffusers
import pytest
import torch

from dato import DatoError, set_scheduler
from dato.samplers import SAMPLERS, sampler_name, sampler_set

NO_BETAS = (
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "CMStochasticIterativeScheduler",
    "IPNDMScheduler",
)


@pytest.mark.parametrize("kind", NO_BETAS)
def test_a_noise_schedule_without_betas_is_not_replaced(pipe, kind):
    pipe.scheduler = present = getattr(diffusers, kind)()
    for name in SAMPLERS:
        with pytest.raises(DatoError, match=f"^cannot replace {kind} by the scheduler '.*': .*betas.*own scheduler$"):
            set_scheduler(pipe, name)
    set_scheduler(pipe, None)
    assert pipe.scheduler is present


def test_betas_may_be_given_one_by_one(pipe):
    betas = torch.linspace(0.001, 0.02, 1000).tolist()
    pipe.scheduler = diffusers.IPNDMScheduler(trained_betas=betas)
    set_scheduler(pipe, "ddim")
    assert torch.allclose(pipe.scheduler.betas, torch.tensor(betas))


UNKNOWN_PREDICTIONS = {
    "sample": {"plms", "euler-a", "dpm++sde"},
    "flow_prediction": set(SAMPLERS) - {"dpm++2m", "dpm++2m-karras", "dpm++2m-sde", "unipc"},
    "v_prediction": set(),
}


@pytest.mark.parametrize("prediction", UNKNOWN_PREDICTIONS)
def test_a_kind_of_prediction_that_a_sampler_does_not_know_is_refused(pipe, prediction):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    present = diffusers.DPMSolverMultistepScheduler(**betas, prediction_type=prediction)
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    refused = set()
    for name in SAMPLERS:
        pipe.scheduler = present
        try:
            set_scheduler(pipe, name)
        except DatoError as error:
            assert str(error).startswith("cannot replace DPMSolverMultistepScheduler by the scheduler")
            assert "prediction_type" in str(error) and "\n" not in str(error) and pipe.scheduler is present
            refused.add(name)
        else:
            assert sampler_name(pipe.scheduler) == name and pipe.scheduler.config.prediction_type == prediction
    assert refused == UNKNOWN_PREDICTIONS[prediction]
    assert torch.equal(torch.get_rng_state(), expected)  # the trial draws nothing of the user's


@pytest.mark.parametrize(
    ("kind", "setting", "refused"),
    [
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, {"plms", "heun", "lms", "dpm++sde"}),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            set(SAMPLERS) - {"euler"},
        ),
    ],
)
def test_settings_of_the_noise_schedule_are_kept_or_the_sampler_is_refused(pipe, kind, setting, refused):
    present, found = getattr(diffusers, kind)(**setting), set()
    for name in SAMPLERS:
        pipe.scheduler = present
        try:
            set_scheduler(pipe, name)
        except DatoError as error:
            assert f"it has {next(iter(setting))}=" in str(error)
            found.add(name)
        else:
            assert all(pipe.scheduler.config[key] == value for key, value in setting.items())
    assert found == refused


def test_betas_that_a_sampler_cannot_make_are_refused(pipe):
    pipe.scheduler = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    with pytest.raises(DatoError, match=r"cannot replace DDPMScheduler by the scheduler 'plms': .*sigmoid"):
        set_scheduler(pipe, "plms")


def test_a_sampler_for_a_while(pipe):
    set_scheduler(pipe, "euler")
    present = pipe.scheduler
    with pytest.raises(ZeroDivisionError), sampler_set(pipe, "ddim"):
        assert sampler_name(pipe.scheduler) == "ddim"
        raise ZeroDivisionError
    assert pipe.scheduler is present
    for same in (None, "euler"):
        with sampler_set(pipe, same):
            assert pipe.scheduler is present
    with pytest.raises(DatoError, match="unknown scheduler 'magic'"), sampler_set(pipe, "magic"):
        pass
    assert pipe.scheduler is present
