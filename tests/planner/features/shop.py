"""A small made-up catalog with skewed and correlated keys, and estimates of queries over it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from planner.estimates import BlockEstimates
from planner.resolve import resolve
from planner.snapshot import ColumnInfo, ColumnStatistics, IndexInfo, Sample, Snapshot, TableInfo
from planner.sql import read

Data = Mapping[str, Sequence[object]]


def column(name: str, values: Sequence[object], number: int) -> ColumnInfo:
    """Statistics as ANALYZE makes them of all rows."""
    present = [value for value in values if value is not None]
    counts = Counter(present)
    common = [pair for pair in counts.most_common(20) if pair[1] > 1.25 * len(present) / len(counts)]
    rest = sorted((value for value in present if value not in dict(common)), key=str)
    if rest and isinstance(rest[0], int):
        rest.sort()
    bounds = [rest[place * (len(rest) - 1) // 50] for place in range(51)] if len(set(rest)) > 1 else []
    distinct = float(len(counts))
    return ColumnInfo(
        name,
        "integer" if isinstance(present[0], int) else "text",
        number,
        statistics=ColumnStatistics(
            null_frac=1 - len(present) / len(values),
            n_distinct=distinct if distinct < len(values) / 10 else -distinct / len(values),
            common_values=tuple(value for value, _ in common),
            common_freqs=tuple(count / len(values) for _, count in common),
            histogram=tuple(bounds),
            correlation=0.5,
        ),
    )


def table(name: str, data: Data, oid: int, *, unique: Sequence[str] = (), sampled: int = 500) -> TableInfo:
    size = len(next(iter(data.values())))
    chosen = random.Random(oid).sample(range(size), min(sampled, size))
    return TableInfo(
        oid=oid,
        schema="public",
        name=name,
        kind="r",
        rows=float(size),
        pages=size // 100 + 1,
        columns={key: column(key, values, number) for number, (key, values) in enumerate(data.items(), 1)},
        indexes=tuple(IndexInfo(f"{name}_{key}", (key,), unique=True) for key in unique),
        sample=Sample(
            len(chosen), {key: tuple(values[row] for row in chosen) for key, values in data.items()}, len(chosen) / size
        ),
    )


def shop_data(seed: int = 1) -> dict[str, Data]:
    """Few buyers have most orders; they are the old ones, and their orders are the large ones."""
    dice = random.Random(seed)
    buyers = range(1, 2001)
    weights = [1 / buyer for buyer in buyers]
    of_order = dice.choices(buyers, weights, k=5000)
    of_visit = dice.choices(buyers, weights, k=8000)
    of_item = [order for order in range(1, 5001) for _ in range(1 + (of_order[order - 1] < 20) * 4)]
    return {
        "buyer": {
            "id": list(buyers),
            "age": [100 - buyer // 25 for buyer in buyers],
            "region": [b % 7 for b in buyers],
        },
        "orders": {"id": list(range(1, 5001)), "buyer_id": of_order, "note": [f"n{o % 13}" for o in of_order]},
        "item": {"order_id": of_item, "price": [dice.randrange(100) for _ in of_item]},
        "visit": {
            "buyer_id": [v if v % 11 else None for v in of_visit],
            "page": [dice.randrange(50) for _ in of_visit],
        },
    }


def snapshot(data: Mapping[str, Data] | None = None, *, prefix: str = "", sampled: int = 500) -> Snapshot:
    """``prefix`` is put before every table's name."""
    found = shop_data() if data is None else data
    made = [
        table(prefix + name, columns, oid, unique=["id"] if "id" in columns else [], sampled=sampled)
        for oid, (name, columns) in enumerate(found.items(), 100)
    ]
    return Snapshot("shop", 180000, {("public", one.name): one for one in made})


def estimates(sql: str, shot: Snapshot) -> BlockEstimates:
    """Of the outermost block."""
    reading = read(sql)
    assert reading.graph is not None, reading.reason
    return BlockEstimates(resolve(reading.graph, shot, ("public",)).blocks[0], shot)
