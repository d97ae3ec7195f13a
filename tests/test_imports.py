"""Reading a front or the names of metrics imports neither torch nor diffusers."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import dato

HEAVY = ("torch", "torchvision", "diffusers", "transformers", "torchmetrics", "huggingface_hub", "peft", "matplotlib")


def loaded_by(code: str) -> set[str]:
    """The heavy packages among the modules of a fresh Python that has run some code."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import dato; assert 'sito' in dato.__all__",
        "import dato.metrics; assert dato.metrics.label_of('psnr') == 'PSNR (dB)'",
        "import dato.front",
        "import dato.strategies",
        "import dato.samplers; assert 'plms' in dato.samplers.SAMPLERS",
        "import dato.hub.card",
        "import dato\nassert dato.front_schema() and dato.schedule_schema()",
        "from dato.hub import card_in, is_name",
        "from dato.front import Front\nfrom dato import load_front\nassert load_front('emoji-sd-depth').knee()",
        "from dato.generation import RANDOM_MODELS, usual_guidance\nassert usual_guidance(RANDOM_MODELS[0])",
        "import dato.emoji_sd",
        "from dato.generation import read_prompts\nassert read_prompts(None, 3)",
        "import dato.utils.files, dato.utils.markdown",
    ],
)
def test_it_loads_nothing_heavy(code):
    assert not loaded_by(code)


PACKAGES = ["dato", *(module.name for module in pkgutil.iter_modules(dato.__path__, "dato.") if module.ispkg)]


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_exports_is_there(name):
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    assert all(hasattr(package, export) for export in exported) and len(set(exported)) == len(exported)


def test_what_is_heavy_is_seen():
    assert loaded_by("import dato.metrics.clip_model") >= {"torch"}
