from dato.comfyui.nodes import exports  # dato is installed in ComfyUI's Python

globals().update(exports())
