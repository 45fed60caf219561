"""A budget of students, as given by `--budget latency=0.2ms,size=300kB`: limits with units, and what exceeds them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tfigkd.runtime.errors import UserError, closest


@dataclass(frozen=True)
class Quantity:
    """What a budget can limit.

    Attributes:
        units: The units that are understood, as multiples of the one in which the quantity is measured.
        shown: The unit in which it is shown.
        is_minimum: Whether the limit is the least that is allowed, not the most.
        decimals: Of the value in rows; None for a count.
    """

    units: Mapping[str, float]
    shown: str
    is_minimum: bool = False
    decimals: int | None = None

    def format(self, value: float) -> str:
        """Return a value with its unit, such as 0.183 ms."""
        return f"{float(f'{value / self.units[self.shown]:.4g}'):,g} {self.shown}"

    def limit(self, value: float) -> str:
        """Return a limit in words, such as at most 0.2 ms."""
        return f"{'at least' if self.is_minimum else 'at most'} {self.format(value)}"

    def share(self, value: float, limit: float) -> float:
        """Return how much of its limit a value takes; above 1 it exceeds the limit."""
        return limit / value if self.is_minimum else value / limit


COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
QUANTITIES = {
    "latency": Quantity({"us": 1e-3, "ms": 1.0, "s": 1e3}, "ms", decimals=4),
    "speedup": Quantity({"": 1.0, "x": 1.0}, "x", is_minimum=True, decimals=3),
    "size": Quantity({"B": 1.0, "kB": 1e3, "MB": 1e6}, "kB"),
    "multiply_adds": Quantity(COUNTS, "M"),
    "parameters": Quantity(COUNTS, "k"),
}
"""Latency of one image on one thread in milliseconds, and how many times lower it is than that of the reference; bytes
of the file; multiply-adds and parameters of the network."""

Budget = Mapping[str, float]
"""Limits by name of the quantity."""


def read_budget(text: str) -> dict[str, float]:
    """Read a budget.

    Args:
        text: Such as `latency=0.2ms,size=300kB,multiply_adds=10M`.

    Raises:
        UserError: A quantity is unknown or given twice, or its limit is no positive number with a unit.
    """
    budget: dict[str, float] = {}
    for part in map(str.strip, text.split(",")):
        name, _, value = (one.strip() for one in part.partition("="))
        if name not in QUANTITIES:
            raise UserError(f"--budget {part}: unknown quantity {name!r}; {closest(name, QUANTITIES)}")
        if name in budget:
            raise UserError(f"--budget {text}: {name} is given twice; give one limit")
        units = QUANTITIES[name].units
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)", value)
        limit = float(found[1]) * units.get(found[2], 0.0) if found else 0.0
        if not 0 < limit < math.inf:
            known = ", ".join(filter(None, units))
            raise UserError(
                f"--budget {part}: expected a positive number and its unit ({known}), such as "
                f"{name}=10{QUANTITIES[name].shown}"
            )
        budget[name] = limit
    return budget


def excess(measured: Mapping[str, float], budget: Budget) -> str:
    """Return in words what exceeds a budget; nothing where all that was measured is within it."""
    over = [name for name in budget if name in measured and _share(name, measured, budget) > 1]
    return "; ".join(f"{name} {QUANTITIES[name].format(measured[name])}, {_limit(name, budget)}" for name in over)


def largest_share(measured: Mapping[str, float], budget: Budget) -> float:
    """Return the largest share of its limit that any measured quantity takes; infinite where none was measured."""
    return max((_share(name, measured, budget) for name in budget if name in measured), default=math.inf)


def format_budget(budget: Budget) -> str:
    """Return a budget in words."""
    return ", ".join(f"{name} {_limit(name, budget)}" for name in budget)


def _share(name: str, measured: Mapping[str, float], budget: Budget) -> float:
    return QUANTITIES[name].share(measured[name], budget[name])


def _limit(name: str, budget: Budget) -> str:
    return QUANTITIES[name].limit(budget[name])
