"""The demo's working day: some forty statements that people and programs ask of a shop's database.

Reports, dashboards, segments, lists, and the point queries of the shop itself, which are to be left alone. The literals
are drawn by a seed, each statement's by its own name, so that another seed asks the same questions about other days,
countries and goods. Most were written before any was timed. Nine joins of many rows with many (what the same people
bought, goods bought again ...) and longer periods came later, to give the database more to do; none was dropped.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass
from string import Template
from typing import Final, TypeVar

from pilotwire.demo.data import FIRST_DAY, LAST_DAY, Sizes
from pilotwire.demo.statements import DASHBOARDS, LISTS, POINTS, REPORTS
from pilotwire.demo.vocabulary import CARRIERS, COUNTRIES, DEPARTMENTS, METHODS

_T = TypeVar("_T")
TEMPLATES: Final = {**REPORTS, **DASHBOARDS, **LISTS, **POINTS}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of the workload: its name, the kind of question, and the SQL with its literals."""

    name: str
    kind: str
    sql: str


def workload(seed: int, scale: float = 1.0) -> list[Statement]:
    """The statements for a database of that scale; the same seed gives the same texts."""
    kinds = {"report": REPORTS, "dashboard": DASHBOARDS, "list": LISTS, "point": POINTS}
    return [
        Statement(name, kind, fill(template, draw_literals(random.Random(f"{seed} {name}"), scale)))  # noqa: S311
        for kind, templates in kinds.items()
        for name, template in templates.items()
    ]


def fill(template: str, literals: dict[str, str]) -> str:
    """The statement with its literals in place, on as few lines as it was written with."""
    lines = (line.rstrip() for line in Template(template).substitute(literals).strip().splitlines())
    return "\n".join(lines)


def quoted(text: str) -> str:
    """`text` as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def draw_literals(draw: random.Random, scale: float) -> dict[str, str]:
    """Every literal that a template may name. Large countries and departments are asked about more often."""
    country, other = _two(draw, COUNTRIES, [one.customers for one in COUNTRIES])
    department, second = _two(draw, DEPARTMENTS, [one.share for one in DEPARTMENTS])
    category = draw.choice(department.categories)
    brands = draw.sample(department.brands, 2)
    literals = {
        "country": country.code,
        "country2": other.code,
        "region": country.region,
        "city": draw.choice(country.cities[:4]),
        "department": department.name,
        "department2": second.name,
        "category": category,
        "category2": draw.choice([name for name in department.categories if name != category]),
        "category3": draw.choice(second.categories),
        "brand": brands[0],
        "brand2": brands[1],
        "method": METHODS[_weighted(draw, country.methods)],
        "carrier": CARRIERS[_weighted(draw, country.carriers)],
        "tier": draw.choice(["platinum", "gold"]),
        "channel": draw.choice(["web", "app"]),
        "kind": draw.choice(["clearance", "flash", "newsletter", "brand week"]),
        "reason": draw.choice(["does not fit", "changed my mind", "damaged", "arrived too late"]),
    }
    found = {name: quoted(value) for name, value in literals.items()} | _dates(draw)
    sizes = Sizes.at(scale)
    found["order_id"] = str(draw.randint(1, sizes.orders))
    found["customer_id"] = str(draw.randint(1, sizes.customers))
    found["product_id"] = str(draw.randint(1, sizes.products))
    found["store_id"] = str(draw.randint(1, sizes.stores))
    found["sku"] = quoted(f"P{draw.randint(1, sizes.products):06d}")
    found["year"] = found["bf_code"][-3:-1]
    return found


def _dates(draw: random.Random) -> dict[str, str]:
    """Days, weeks, months and quarters of the last two years, Black Friday and December of one of them."""
    first, last = FIRST_DAY.astype(datetime.date), LAST_DAY.astype(datetime.date)
    day = first + datetime.timedelta(days=draw.randint(365, (last - first).days - 40))
    month = day.replace(day=1)
    quarter = day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
    year = draw.choice([2022, 2023, 2024])
    dates = {
        "day": day,
        "next_day": day + datetime.timedelta(days=1),
        "week_end": day + datetime.timedelta(days=7),
        "month": month,
        "next_month": _months_later(month, 1),
        "quarter": quarter,
        "next_quarter": _months_later(quarter, 3),
        "half_ago": _months_later(month, -6),
        "year_ago": _months_later(month, -12),
        "bf": datetime.date(year, 11, 22),
        "bf_end": datetime.date(year, 12, 1),
        "december": datetime.date(year, 12, 1),
        "january": datetime.date(year + 1, 1, 1),
    }
    found = {name: f"date {quoted(date.isoformat())}" for name, date in dates.items()}
    found["bf_code"] = quoted(f"BLACKFRIDAY{year % 100}")
    return found


def _months_later(day: datetime.date, months: int) -> datetime.date:
    number = day.year * 12 + day.month - 1 + months
    return day.replace(year=number // 12, month=number % 12 + 1, day=1)


def _weighted(draw: random.Random, weights: tuple[float, ...]) -> int:
    return draw.choices(range(len(weights)), weights)[0]


def _two(draw: random.Random, values: tuple[_T, ...], weights: list[float]) -> tuple[_T, _T]:
    """Two different ones."""
    first = draw.choices(range(len(values)), weights)[0]
    second = draw.choices(range(len(values)), [0 if at == first else weight for at, weight in enumerate(weights)])[0]
    return values[first], values[second]
