"""Run a schedule in the UNet of a pipeline.

- `patch` puts a schedule into a pipeline and removes it; `unet_patch` is what then stands in for the UNet's forward.
- `ladder` runs a UNet to a given depth, by the steps of its `adapter`; `compiled` compiles that. Adapters are in
  `diffusers_unet`, `compvis_unet` and `comfyui_unet`, and `kinds` has their list.
- `cache` keeps values of past calls, and `forecast` brings them to the present call. `dato.call` says which.
- `current_call` finds out which call of a generation is running, and `counted` counts calls where no list is known.
- `run_schedule` gives each run its schedule; `speedup_rule` makes one for a speed-up, with `depth_shares`.
- `controlnet` makes ControlNets follow the schedule.
- `targets`, `patch_arguments`, `forward_override`, `offload` and `run_check` connect this with diffusers,
  accelerate and `torch.compile`.
"""

from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.unet.patch import apply_patch, current_schedule, patched, remove_patch
from dato.unet.speedup_rule import rule

__all__ = ["CompiledCalls", "Ladder", "apply_patch", "current_schedule", "patched", "remove_patch", "rule"]
