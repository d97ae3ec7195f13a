"""Fronts in repositories of the Hugging Face hub: upload, download, and the model card that says what is in one.

A front comes in and goes out as the dictionary of its file (`Front.to_dict`), so this package does not import `Front`.
Users call `Front.push_to_hub`, `Front.save_pretrained` and `Front.from_pretrained`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato.hub.card import card_in, front_card
    from dato.hub.names import CARD_FILE, FRONT_FILE, is_name
    from dato.hub.repository import fetch, push_front, save_front

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CARD_FILE": "dato.hub.names",
        "FRONT_FILE": "dato.hub.names",
        "card_in": "dato.hub.card",
        "fetch": "dato.hub.repository",
        "front_card": "dato.hub.card",
        "is_name": "dato.hub.names",
        "push_front": "dato.hub.repository",
        "save_front": "dato.hub.repository",
    },
)
