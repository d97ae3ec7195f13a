"""The processes of scripts/mutate.py: one module is changed in a child, and nowhere else."""

import subprocess
import sys

from conftest import ROOT

CODE = """
import os, sys, time
sys.path[:0] = ["scripts", "."]
from mutation_process import ChangedModule, in_a_child

def changed():
    sys.meta_path.insert(0, ChangedModule("dato/utils/markdown.py", "ANSWER = 42"))
    import dato.utils.markdown
    return dato.utils.markdown.ANSWER

print(in_a_child(changed, 60))
print(in_a_child(lambda: time.sleep(60), 0.2))  # too long
print(in_a_child(lambda: os._exit(3), 60))  # as if PyTorch had crashed
import dato.utils.markdown
print(hasattr(dato.utils.markdown, "ANSWER"), os.path.getsize("dato/utils/markdown.py") > 50)
"""


def test_a_module_is_changed_in_a_child_only():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["42", "None", "{'code': 'the process ended'}", "False True"]
