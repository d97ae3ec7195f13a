"""The rules of forecasting, by name: which past values each rule reads, and at which orders.

How a rule computes its forecast is in `dato.unet.forecast`. This module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = 1_000_000  # more values than any generation computes


@dataclass(frozen=True)
class ForecastRule:
    """One rule.

    Attributes:
        name: The rule's name in `Schedule.forecast`.
        orders: The orders at which the rule applies. At other orders the polynomial applies instead.
        at_prediction: Whether the rule also forecasts the prediction (depth 0). If not, the polynomial does.
        most_values: The number of past values that the rule reads at most; None: the order plus 1.
        uses_calls: Whether the rule counts time in calls; if not, in timesteps.
        uses_skips: Whether the rule reads the skip connection beside each value.
        caches_last_feature: Whether the last feature before the UNet's head is cached instead of the prediction. Then
            the head runs at depth 0, too.
        can_be_planned: Whether `dato.search.planner` can plan schedules with this rule.
    """

    name: str
    orders: tuple[int, ...] = (1, 2)
    at_prediction: bool = True
    most_values: int | None = None
    uses_calls: bool = False
    uses_skips: bool = False
    caches_last_feature: bool = False
    can_be_planned: bool = True

    def made(self, values: int) -> tuple[int, str]:
        """Return the order of a forecast that reads `values` values, and the name of its rule.

        One value is returned as it is, which is the polynomial of order 0. A rule that reads a fixed number of values
        has order 1.
        """
        order = values - 1 if self.most_values is None else min(1, values - 1)
        return order, self.name if order else POLYNOMIAL.name


POLYNOMIAL = ForecastRule("polynomial")
RULES = {
    rule.name: rule
    for rule in (
        POLYNOMIAL,
        ForecastRule("aligned", orders=(1,), at_prediction=False, most_values=3, uses_skips=True),
        # Spectrum: Han et al., CVPR 2026. It reads all past values, so a planner could not compare schedules with
        # different pasts.
        ForecastRule("chebyshev", most_values=ALL, uses_calls=True, caches_last_feature=True, can_be_planned=False),
    )
}
FORECASTS = tuple(RULES)


def rule_at(forecast: str, order: int, *, of_prediction: bool) -> tuple[ForecastRule, int]:
    """Return the rule that applies at a call, and how many past values it reads at most.

    Args:
        forecast: The schedule's rule, one of `FORECASTS`.
        order: The call's order in the schedule.
        of_prediction: Whether the call reads the prediction (depth 0), not what arrives at a rung.
    """
    rule = RULES[forecast]
    if order not in rule.orders or (of_prediction and not rule.at_prediction):
        rule = POLYNOMIAL
    return rule, order + 1 if rule.most_values is None else rule.most_values
