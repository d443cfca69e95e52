"""What the demo's shop has sold: orders with their items, payments, shipments and returns, drawn from a `World`.

Drawn in the order in which they depend on each other: who orders and when, where, what for, under which promotion; then
the lines of the basket; then how it was paid and sent; then what came back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pilotwire.demo.data import (
    DAYS,
    FIRST_DAY,
    LAST_DAY,
    Array,
    Columns,
    Sizes,
    World,
    make_world,
    names,
    pick,
    pick_rows,
)
from pilotwire.demo.vocabulary import (
    CARRIERS,
    CHANNELS,
    COUNTRIES,
    DEPARTMENTS,
    METHODS,
    REASONS,
    TASTES,
    WAREHOUSES,
)

LONGEST_BASKET: Final = 30
HOUR_WEIGHTS: Final = (
    1, .5, .3, .2, .2, .4, 1, 2, 3, 4, 4.5, 4.5, 5, 4.5, 4, 4, 4.5, 5, 6, 7.5, 8, 7, 5, 2.5,
)  # fmt: skip
TIERS: Final = ((0.01, "platinum"), (0.05, "gold"), (0.2, "silver"))
"""Upper share of the customers by what they spent, and the tier that this is."""


@dataclass(slots=True)
class _Orders:
    """Orders while they are being drawn; all indexes count from 0, ``promotion`` -1 is none."""

    customer: Array
    day: Array
    country: Array
    store: Array
    online: Array
    channel: Array
    department: Array
    promotion: Array


def generate(seed: int, scale: float = 1.0) -> dict[str, Columns]:
    """All tables by name, in an order in which foreign keys hold. The same seed and scale give the same rows."""
    random = np.random.default_rng(seed)
    sizes = Sizes.at(scale)
    world = make_world(random, sizes)
    orders = _orders(random, world, sizes.orders)
    items, line_department = _items(random, world, orders)
    count = len(orders.customer)
    at = items["order_id"] - 1
    amount = items["unit_price"] * items["quantity"] - items["discount"]
    total = np.round(np.bincount(at, amount, minlength=count), 2)
    ordered_at = _moments(random, orders.day)
    columns = _order_columns(random, world, orders, ordered_at, total)
    _give_tiers(world, orders, total)
    return {
        "stores": world.stores,
        "categories": world.categories,
        "products": world.products,
        "promotions": world.promotions,
        "customers": world.customers,
        "orders": columns,
        "order_items": items,
        "payments": _payments(random, orders, columns),
        "shipments": _shipments(random, orders, columns, np.bincount(at, minlength=count)),
        "returns": _returns(random, world, orders, columns, items, line_department),
    }


def _day_weights() -> Array:
    """How much is sold on each day: growth over the years, weekends, the seasons, Black Friday week, the holidays."""
    day = np.arange(DAYS)
    date = FIRST_DAY + day.astype("timedelta64[D]")
    month = date.astype("datetime64[M]").astype(int) % 12
    of_month = (date - date.astype("datetime64[M]")).astype(int)
    seasonal = np.array([0.95, 0.8, 0.88, 0.92, 0.95, 0.9, 0.95, 0.85, 0.93, 1.0, 1.35, 1.6])[month]
    weekday = np.array([1, 0.95, 0.95, 1, 1.05, 1.2, 1.3])[(date.astype(int) + 3) % 7]
    weights: Array = seasonal * weekday * (1 + day / DAYS * 0.9)
    weights[(month == 10) & (of_month >= 21) & (of_month <= 28)] *= 2.8
    weights[(month == 11) & (of_month >= 23)] *= 0.45
    return weights


def _orders(random: np.random.Generator, world: World, count: int) -> _Orders:
    customer = pick(random, world.habit, count)
    cumulative = np.concatenate([[0.0], np.cumsum(_day_weights())])
    cumulative /= cumulative[-1]
    signed_up = (world.customers["signed_up_on"] - FIRST_DAY).astype(int)[customer].clip(0)
    start = cumulative[signed_up.clip(max=DAYS - 1)]
    day = np.searchsorted(cumulative, start + random.random(count) * (1 - start), side="right") - 1
    # Most people buy soon after they have signed up, and many never again.
    soon = (signed_up > 0) & (random.random(count) < 0.5)
    day = np.where(soon, signed_up + random.exponential(75, count).astype(int), day).clip(0, DAYS - 1)
    order = np.argsort(day, kind="stable")
    customer, day = customer[order], day[order]
    country = world.customer_country[customer]
    store, online = _stores(random, world, country)
    youth = (world.customers["birth_year"][customer] > 1988) * 0.22
    app = random.random(count) < 0.12 + 0.25 * day / DAYS + youth
    phone = random.random(count) < np.where(world.customers["birth_year"][customer] < 1965, 0.09, 0.015)
    channel = np.where(~online, 3, np.where(phone, 2, np.where(app, 1, 0)))
    orders = _Orders(customer, day, country, store, online, channel, np.empty(0), np.empty(0))
    orders.department = _departments(random, world, orders)
    orders.promotion = _promotions(random, world, orders)
    return orders


def _stores(random: np.random.Generator, world: World, country: Array) -> tuple[Array, Array]:
    """The store of each order: three quarters online, a few abroad, the rest in the country's shops by their size."""
    count, countries = len(country), len(COUNTRIES)
    abroad = random.random(count) < 0.015
    where = np.where(abroad, random.integers(0, countries, count), country)
    at = world.stores["country"]
    size = np.where(world.stores["floor_space"] > 0, world.stores["floor_space"], 0).astype(float)
    shares = np.stack([np.where(at == one.code, size, 0.0) for one in COUNTRIES])
    has_shop = shares.sum(axis=1) > 0
    shares[~has_shop, :] = np.eye(countries, shares.shape[1])[~has_shop]
    online = (random.random(count) < 0.74) | ~has_shop[where]
    return np.where(online, where, pick_rows(random, shares, where)), online


def _departments(random: np.random.Generator, world: World, orders: _Orders) -> Array:
    """What each order is for: often the customer's favourite, else by country and month."""
    shares = np.array(
        [
            [
                [one.share * one.months[month] * TASTES[country.code].get(one.name, 1.0) for one in DEPARTMENTS]
                for month in range(12)
            ]
            for country in COUNTRIES
        ]
    )
    month = (FIRST_DAY + orders.day.astype("timedelta64[D]")).astype("datetime64[M]").astype(int) % 12
    drawn = pick_rows(random, shares.reshape(-1, len(DEPARTMENTS)), orders.country * 12 + month)
    loyal = random.random(len(drawn)) < 0.35
    return np.where(loyal, world.favourite[orders.customer], drawn)


def _promotions(random: np.random.Generator, world: World, orders: _Orders) -> Array:
    """The promotion that each order uses: those of the days it lies in, for whom and what they are meant."""
    chosen = np.full(len(orders.day), -1)
    starts = (world.promotions["starts_on"] - FIRST_DAY).astype(int)
    ends = (world.promotions["ends_on"] - FIRST_DAY).astype(int)
    signed_up = (world.customers["signed_up_on"] - FIRST_DAY).astype(int)[orders.customer]
    frequent = world.habit > np.quantile(world.habit, 0.95)
    strength = {"welcome": 0.55, "loyalty": 0.3, "flash": 0.5, "clearance": 0.3, "brand week": 0.25, "newsletter": 0.15}
    big = {"BLACKFRIDAY": 0.75, "XMAS": 0.35, "SUMMERSALE": 0.3, "WINTERSALE": 0.28}
    for at, (code, kind) in enumerate(zip(world.promotions["code"], world.promotions["kind"], strict=True)):
        first, last = np.searchsorted(orders.day, [starts[at], ends[at] + 1])
        inside = slice(int(first), int(last))
        chance = np.full(last - first, big[code[:-2]] if kind == "seasonal" else strength[kind])
        if kind == "welcome":
            chance *= orders.day[inside] - signed_up[inside] < 21
        elif kind == "loyalty":
            chance *= frequent[orders.customer[inside]]
        elif kind != "seasonal":
            department = world.promotion_department[at]
            chance *= 0.2 if department < 0 else orders.department[inside] == department
        taken = (random.random(last - first) < chance) & orders.online[inside]
        chosen[inside] = np.where(taken & (chosen[inside] < 0), at, chosen[inside])
    return chosen


def _items(random: np.random.Generator, world: World, orders: _Orders) -> tuple[Columns, Array]:
    """The lines of all baskets; people who buy often, and Black Friday, fill larger ones."""
    count = len(orders.customer)
    mean = np.array([1.5, 1.0, 1.2, 1.9])[orders.channel]
    mean = mean * np.array([0.35 if one.price > 100 else 1 + one.quantity for one in DEPARTMENTS])[orders.department]
    mean = (
        mean
        * (0.75 + 0.35 * np.sqrt(world.habit[orders.customer].clip(0, 16)))
        * np.where(orders.promotion >= 0, 1.25, 1)
    )
    lines = 1 + random.poisson(random.gamma(0.9, mean / 0.9) * 0.85).clip(0, LONGEST_BASKET - 1)
    order = np.repeat(np.arange(count), lines)
    elsewhere = random.random(len(order)) < 0.22
    department = np.where(
        elsewhere, pick(random, [one.share for one in DEPARTMENTS], len(order)), orders.department[order]
    )
    product = _goods(random, world, department, orders.day[order])
    # One line per product: whoever wants two of it orders a quantity of two.
    _, first = np.unique(order * np.int64(len(world.product_weight)) + product, return_index=True)
    first.sort()
    order, product = order[first], product[first]
    department = world.product_department[product]
    line = np.arange(len(order)) - np.searchsorted(order, order) + 1
    quantity = 1 + random.poisson(np.array([one.quantity for one in DEPARTMENTS])[department])
    bulk = random.random(len(order)) < 0.008
    quantity[bulk] += random.integers(4, 40, int(bulk.sum()))
    price = np.round(world.products["price"][product] * (0.94 + 0.03 * orders.day[order] / 365), 2)
    promotion = orders.promotion[order]
    only = world.promotions["category_id"][promotion]
    applies = (promotion >= 0) & ((only < 0) | (only == world.products["category_id"][product]))
    percent = np.where(applies, world.promotions["discount_percent"][promotion], 0)
    columns = {
        "order_id": order + 1,
        "line_no": line,
        "product_id": product + 1,
        "quantity": quantity,
        "unit_price": price,
        "discount": np.round(price * quantity * percent / 100, 2),
    }
    return columns, department


def _goods(random: np.random.Generator, world: World, department: Array, day: Array) -> Array:
    """A product for each line, by popularity within its department, out of those on sale on that day."""
    launched = (world.products["launched_on"] - FIRST_DAY).astype(int)
    gone = world.products["discontinued_on"]
    last = np.where(np.isnat(gone), DAYS, (gone - FIRST_DAY).astype(int))
    product = np.empty(len(department), int)
    for at in range(len(DEPARTMENTS)):
        mine = np.flatnonzero(department == at)
        goods = np.flatnonzero(world.product_department == at)
        weights = world.product_weight[goods]
        chosen = goods[pick(random, weights, len(mine))]
        for _ in range(6):
            missing = np.flatnonzero((launched[chosen] > day[mine]) | (last[chosen] < day[mine]))
            chosen[missing] = goods[pick(random, weights, len(missing))]
        product[mine] = chosen
    return product


def _moments(random: np.random.Generator, day: Array) -> Array:
    """A time on each day, ascending as the orders' ids are."""
    second = pick(random, HOUR_WEIGHTS, len(day)) * 3600 + random.integers(0, 3600, len(day))
    moment: Array = FIRST_DAY.astype("datetime64[s]") + np.sort(day * 86400 + second).astype("timedelta64[s]")
    return moment


def _order_columns(
    random: np.random.Generator, world: World, orders: _Orders, ordered_at: Array, total: Array
) -> Columns:
    age = (LAST_DAY.astype("datetime64[s]") - ordered_at).astype(int) / 86400
    count = len(age)
    cancelled = random.random(count) < np.where(orders.online, 0.045, 0.002)
    status = np.where(cancelled, 1, np.where(orders.online & (age < 9) & (random.random(count) < 1 - age / 10), 2, 0))
    status = np.where((status == 2) & (age < 2.5), 3, status)
    return {
        "id": np.arange(1, count + 1),
        "customer_id": orders.customer + 1,
        "store_id": orders.store + 1,
        "promotion_id": np.where(orders.promotion < 0, -1, orders.promotion + 1),
        "channel": names(CHANNELS, orders.channel),
        "status": names(("completed", "cancelled", "shipped", "open"), status),
        "ordered_at": ordered_at,
        "total": total,
    }


def _give_tiers(world: World, orders: _Orders, total: Array) -> None:
    """The tier follows from what a customer spent, so it tells how many orders to expect."""
    spent = np.bincount(orders.customer, total, minlength=len(world.habit))
    place = np.empty(len(spent))
    place[np.argsort(-spent)] = np.arange(len(spent)) / len(spent)
    for share, tier in reversed(TIERS):
        world.customers["tier"][(place < share) & (spent > 0)] = tier


def _payments(random: np.random.Generator, orders: _Orders, columns: Columns) -> Columns:
    """Each order's payments: in the way of its country; large sums in instalments, a failed try before some."""
    total = columns["total"]
    method = pick_rows(random, np.array([one.methods for one in COUNTRIES]), orders.country)
    cash = ~orders.online & (random.random(len(total)) < 0.35)
    method[cash] = METHODS.index("cash")
    small = (method == METHODS.index("instalments")) & (total < 150)
    method[small] = 0
    method[(total > 600) & (random.random(len(total)) < 0.3)] = METHODS.index("instalments")
    times = np.where(method == METHODS.index("instalments"), random.choice([3, 6, 12], len(total)), 1)
    failing = np.array([0.05, 0.01, 0.0, 0.03, 0.0, 0.08, 0.0, 0.0])[method] * (1 + (total > 400))
    failed = random.random(len(total)) < failing
    order = np.repeat(np.arange(len(total)), times + failed)
    number = np.arange(len(order)) - np.searchsorted(order, order)
    is_failed = failed[order] & (number == 0)
    number = number - failed[order]
    delay = np.array([0, 0, 12, 3, 2, 0, 0, 0])[method][order] * random.exponential(1, len(order))
    delay = delay + np.where(number > 0, number * 30, 0)
    paid_at = columns["ordered_at"][order] + (delay * 86400).astype("timedelta64[s]")
    pending = paid_at > LAST_DAY.astype("datetime64[s]")
    cancelled = columns["status"][order] == "cancelled"
    status = np.where(is_failed, 1, np.where(pending, 3, np.where(cancelled, 2, 0)))
    by_time = np.argsort(paid_at, kind="stable")
    return {
        "id": np.arange(1, len(order) + 1),
        "order_id": order[by_time] + 1,
        "method": names(METHODS, method[order][by_time]),
        "status": names(("captured", "failed", "refunded", "pending"), status[by_time]),
        "amount": np.round((total / times)[order], 2)[by_time],
        "paid_at": paid_at[by_time],
    }


def _shipments(random: np.random.Generator, orders: _Orders, columns: Columns, lines: Array) -> Columns:
    """Parcels of what was ordered online; large baskets come in several, December is late, and so are some carriers."""
    sent = orders.online & (columns["status"] != "cancelled") & (columns["status"] != "open")
    parcels = np.where(sent, 1 + (random.random(len(sent)) < (lines - 2) * 0.12) + (lines > 9), 0)
    order = np.repeat(np.arange(len(sent)), parcels)
    country = orders.country[order]
    carrier = pick_rows(random, np.array([one.carriers for one in COUNTRIES]), country)
    month = columns["ordered_at"][order].astype("datetime64[M]").astype(int) % 12
    season = np.array([1.1, 1, 1, 1, 1, 1, 1, 1.05, 1, 1, 1.35, 1.7])[month]
    slow = np.array([1, 0.9, 0.95, 1.1, 1.5, 0.9, 1.15, 1.1, 0.9])[carrier]
    usual = np.array([one.days for one in COUNTRIES])[country]
    shipped = columns["ordered_at"][order] + (random.gamma(2, 0.4, len(order)) * season * 86400).astype(
        "timedelta64[s]"
    )
    travel = random.gamma(6, usual * season * slow / 6) + (random.random(len(order)) < 0.01) * 14
    delivered = shipped + (travel * 86400).astype("timedelta64[s]")
    delivered[(delivered > LAST_DAY.astype("datetime64[s]")) | (random.random(len(order)) < 0.004)] = np.datetime64(
        "NaT"
    )
    home = [WAREHOUSES[one.region] for one in COUNTRIES]
    elsewhere = random.random(len(order)) < 0.08
    stocked = np.where(
        elsewhere,
        names(sorted(WAREHOUSES.values()), random.integers(0, len(WAREHOUSES), len(order))),
        names(home, country),
    )
    by_time = np.argsort(shipped, kind="stable")
    promised = columns["ordered_at"][order].astype("datetime64[D]") + np.ceil(usual + 2).astype("timedelta64[D]")
    return {
        "id": np.arange(1, len(order) + 1),
        "order_id": order[by_time] + 1,
        "carrier": names(CARRIERS, carrier[by_time]),
        "warehouse": stocked[by_time],
        "promised_on": promised[by_time],
        "shipped_at": shipped[by_time],
        "delivered_at": delivered[by_time],
    }


def _returns(
    random: np.random.Generator, world: World, orders: _Orders, columns: Columns, items: Columns, department: Array
) -> Columns:
    """What came back: by department and category, by country, by channel, and by the habits of the customer."""
    at = items["order_id"] - 1
    chance = np.array([one.returned for one in DEPARTMENTS])[department]
    category = random.lognormal(-0.1, 0.5, len(world.category_department))
    habit = random.gamma(1.2, 1 / 1.2, len(world.habit))
    country = np.array(
        [1.5 if one.region == "DACH" else 0.6 if one.region == "Southern Europe" else 0.95 for one in COUNTRIES]
    )
    chance = chance * category[world.products["category_id"][items["product_id"] - 1] - 1] * habit[orders.customer[at]]
    chance = chance * country[orders.country[at]] * np.where(orders.online[at], 1.1, 0.3)
    back = np.flatnonzero((random.random(len(at)) < chance) & (columns["status"][at] == "completed"))
    requested = columns["ordered_at"][at[back]] + ((3 + random.gamma(2, 5, len(back))) * 86400).astype("timedelta64[s]")
    kept = requested <= LAST_DAY.astype("datetime64[s]")
    back, requested = back[kept], requested[kept]
    fits = np.isin(
        department[back], [index for index, one in enumerate(DEPARTMENTS) if one.name in ("Fashion", "Shoes")]
    )
    shares = np.array([[0.02, 0.25, 0.35, 0.25, 0.06, 0.07], [0.58, 0.12, 0.22, 0.03, 0.02, 0.03]])
    reason = pick_rows(random, shares, fits.astype(int))
    by_time = np.argsort(requested, kind="stable")
    back = back[by_time]
    refund = items["unit_price"][back] * items["quantity"][back] - items["discount"][back]
    return {
        "id": np.arange(1, len(back) + 1),
        "order_id": items["order_id"][back],
        "line_no": items["line_no"][back],
        "reason": names(REASONS, reason[by_time]),
        "requested_at": requested[by_time],
        "refund": np.round(refund, 2),
    }
