"""JSON Schemas of fronts and schedules (draft 2020-12), for programs that read these files without dato.

The files beside this module describe each key with its unit. They refuse what `Front.from_dict` and
`Schedule.from_dict` refuse, except what a JSON Schema cannot say. Each schema names these cases in its description.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dato.utils.files import read_json

FRONT = Path(__file__).parent / "front.schema.json"
SCHEDULE = Path(__file__).parent / "schedule.schema.json"


def front_schema() -> dict[str, Any]:
    """Return the JSON Schema of a front, `pareto.json`.

    Example:
        >>> front_schema()["properties"]["format"]["const"]
        'dato.front'
    """
    return read_json(FRONT)


def schedule_schema() -> dict[str, Any]:
    """Return the JSON Schema of one schedule, as `Schedule.to_json` writes it.

    Example:
        >>> schedule_schema()["required"]
        ['format', 'version', 'depths']
    """
    return read_json(SCHEDULE)
