"""The kinds of search that are compared. They stand here so that the command's help needs no torch."""

from __future__ import annotations

# Kind of search -> what it is.
SEARCHES = {
    "paper": "DaTo's settings: 450 candidates",
    "regular": "from regular schedules, with our operators",
    "raced": "the same, and losers are given up after half of their images",
    "planned": "from the sensitivity model's plans, which also ranks offspring, raced",
    "planned, all": "the same over depths 0 to 3 and forecasts of order 0 and 1",
    "guided": "evolves on predictions, as the preset fast does: depth 0, an order for each call",
    "rules": "no search: 4 to 25 calls whole, spread evenly or ever farther apart; depth 0 or 1, order 0 or 1",
}
WIDE = "planned, all"  # the search with more depths and orders
PLANNED = {"planned": [0, 1], WIDE: [0, 1, 2, 3], "guided": [0]}  # searches that predict -> the depths they know
