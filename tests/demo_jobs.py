"""What the demo's tests share: a studio with few steps, choices, jobs, and the images that they have to give."""

import contextlib

from conftest import FRONT_FILE
from torch import Tensor

from dato import Schedule, set_scheduler
from dato.demo.choices import Choice, choices_of
from dato.demo.job import Job
from dato.demo.sessions import Sessions
from dato.demo.studio import Studio
from dato.demo.usage import Loading
from dato.generation.sampling import Sampling, generate
from dato.strategies import load_front
from dato.unet.patch import apply_patch, remove_patch

STEPS, PROMPT = 4, "rose on a white background"
CHOICE = Choice("every 2nd", Schedule.uniform(STEPS, 2, 1), "schedule", ())
OTHER = Choice("every 3rd", Schedule.uniform(STEPS, 3, 0), "schedule", ())


@contextlib.contextmanager
def a_studio(pipe):
    """A studio of the embedded model."""
    set_scheduler(pipe, "dpm++2m")
    studio = Studio(pipe, Sampling(STEPS, 3.0, batch_size=1))
    yield studio
    studio.close()


@contextlib.contextmanager
def counted_calls(pipe):
    """The UNet's calls, counted: a list with an entry for each."""
    counted = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: counted.append(1))
    yield counted
    handle.remove()


def sessions_of(studio) -> Sessions:
    """Sessions along a front, in `STEPS` steps."""
    choices, _ = choices_of(load_front(FRONT_FILE), str(FRONT_FILE), STEPS)
    loading = Loading("emoji-sd", "dpm++2m", "dpm++2m", given={"--steps": f"{STEPS}"})
    return Sessions(studio, loading, choices, ["a rose", "a dog"])


def job(*choices, prompt=PROMPT, seed=0) -> Job:
    """A job; without choices, of `CHOICE`."""
    return Job(prompt, seed, choices or (CHOICE,))


def last(run):
    """What is known of a run at its end."""
    return list(run.snapshots())[-1]


def image_of(pipe, schedule=None, seed=0) -> Tensor:
    """The image (3, H, W) that `generate` makes, of stock or with a schedule."""
    if schedule is not None:
        apply_patch(pipe, schedule)
    image = generate(pipe, [PROMPT], Sampling(STEPS, 3.0, seed=seed)).images[0]
    remove_patch(pipe)
    return image
