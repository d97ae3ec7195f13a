"""A run's page: one HTML file with the front, every schedule on it, its images and how to use it.

The file holds all it needs (plotly.js, data, images). It loads nothing from the network and works from a folder.
Whatever comes from a run (prompts, names, settings) is stored as JSON and is shown as text, never as markup.

What the page shows comes from `dato.report.page_data`. How it looks and behaves is in page.html, page.css and page.js,
and in parts.js and schedule.css, which the demo uses too.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from dato.errors import DatoError
from dato.report.page_data import page_data
from dato.search.run_folder import Run
from dato.utils.files import finite, write_atomic

_HERE = Path(__file__).parent


def write_page(runs: Sequence[Run], path: str | Path) -> None:
    """Write one self-contained HTML page about a run, or about several beside each other.

    Args:
        runs: What to show. The first one is chosen when the page opens.
        path: The file.

    Raises:
        DatoError: if there is no run, two have the same name, a sample is no image, or the file cannot be written.
    """
    if not runs:
        raise DatoError("a page needs at least one run")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise DatoError(f"a page needs runs of different names, not {', '.join(names)}")
    style, script = _text("schedule.css") + _text("page.css"), _text("parts.js") + _text("page.js")
    plotly = get_plotlyjs()
    parts = {
        "title": html.escape(", ".join(names)),
        # The browser loads nothing and runs only these two scripts, even if text were taken for markup by mistake.
        "policy": f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_hash(plotly)} {_hash(script)}",
        "style": style,
        "data": _embedded(page_data(runs)),
        "plotly": plotly,
        "script": script,
    }
    # All placeholders are replaced in one pass, so a placeholder in the data stays text.
    write_atomic(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _text("page.html")))


def _text(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _embedded(data: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda match: escapes[match[0]], text)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
