"""Nodes for ComfyUI: "dato: apply schedule" and "dato: prune tokens".

- `nodes` describes the nodes to ComfyUI, by its newer interface or by the older one. `inputs` says what they take.
- `apply` puts settings (`settings`) and `wrappers` into a copy of a model. `wrappers` are what ComfyUI then calls.
- `run` is one generation: which call it is (`sampler_calls`), its schedule (`run_schedule`), and its caches.
- `summary` says in words what will run, and what has run.
- `install` writes the folder in `custom_nodes`.

ComfyUI's licence is GPL. So nothing of it is copied here. Its functions are imported when a node runs.
"""
