"""A small made-up schema with every kind of column and key that estimates look at, and conditions over it."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = """
SELECT setseed(0.3);
CREATE UNLOGGED TABLE patron (id integer PRIMARY KEY, name text, mail varchar(80), town text, area char(4), born date,
    vip boolean, score numeric(8, 2), balance double precision, remark text, since timestamptz, tag integer[]);
INSERT INTO patron SELECT i,
    (ARRAY['Ada', 'Bob', 'Cy', 'Dee', 'Eve'])[1 + floor(random() ^ 2 * 5)] || ' ' || md5(i::text),
    'user' || i || '@' || (ARRAY['a.org', 'b.com', 'c.net'])[1 + floor(random() ^ 3 * 3)],
    'town' || least(floor(-8 * ln(1 - random())), 40)::int, '', date '1950-01-01' + (random() * 20000)::int,
    CASE WHEN random() < 0.05 THEN NULL ELSE random() < 0.1 END, round((random() * 1000)::numeric, 2),
    random() ^ 3 * 1e6,
    CASE WHEN random() < 0.02 THEN 'see file ' || i END,
    timestamptz '2015-01-01 00:00+00' + random() * interval '3000 days', ARRAY[i % 7, i % 3]
    FROM generate_series(1, 6000) i;
UPDATE patron SET area = left(upper(md5(town)), 2);
CREATE UNLOGGED TABLE sale (id bigint PRIMARY KEY, patron_id integer, placed timestamp, state text,
    total numeric(10, 2), shop smallint, key uuid);
INSERT INTO sale SELECT i, 1 + floor(random() ^ 2 * 6000), timestamp '2018-01-01' + random() ^ 2 * interval '2000 days',
    (ARRAY['open', 'paid', 'sent', 'done', 'void'])[1 + floor(random() ^ 2 * 5)], (random() ^ 4 * 5000)::numeric(10, 2),
    floor(random() ^ 2 * 300), md5(i::text)::uuid FROM generate_series(1, 20000) i;
CREATE UNLOGGED TABLE item (sale_id bigint, place integer, ware_id integer, amount integer, price numeric,
    PRIMARY KEY (sale_id, place));
INSERT INTO item SELECT s.id, n, CASE WHEN random() < 0.1 THEN NULL ELSE 1 + floor(random() ^ 3 * 800) END,
    1 + floor(random() ^ 5 * 20), round((random() * 100)::numeric, 2)
    FROM sale s, generate_series(1, 1 + (s.id % 3)::int) n;
CREATE TABLE ware (id integer PRIMARY KEY, title text, kind text, code varchar(12));
INSERT INTO ware SELECT i, 'ware ' || md5(i::text), 'kind ' || (i % 13), chr(65 + i % 26) || i
    FROM generate_series(1, 800) i;
CREATE UNLOGGED TABLE parcel (sale_id bigint, place integer, carrier text, weight real);
INSERT INTO parcel SELECT sale_id, place, 'carrier ' || amount % 4, amount * 1.5 FROM item WHERE random() < 0.5;
ALTER TABLE sale ADD FOREIGN KEY (patron_id) REFERENCES patron;
ALTER TABLE item ADD FOREIGN KEY (sale_id) REFERENCES sale;
ALTER TABLE parcel ADD FOREIGN KEY (sale_id, place) REFERENCES item;
CREATE TABLE rating (ware_code text, patron numeric, stars integer, given date);
INSERT INTO rating SELECT w.code, 1 + floor(random() * 6000), 1 + floor(random() * 5), date '2020-01-01' + n
    FROM ware w, generate_series(1, 12) n;
CREATE TABLE blank (id integer PRIMARY KEY, ware_id integer);
CREATE TABLE unseen (id integer, ware_id integer, label text) WITH (autovacuum_enabled = off);
INSERT INTO unseen SELECT i, i % 50, 'label ' || i FROM generate_series(1, 3000) i;
CREATE TABLE parted (id integer, at date, ware_id integer) PARTITION BY RANGE (at);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
INSERT INTO parted SELECT i, date '2020-01-01' + i % 700, i % 800 FROM generate_series(1, 5000) i;
CREATE INDEX ON sale (placed); CREATE INDEX ON sale (patron_id); CREATE INDEX ON patron (born);
CREATE STATISTICS town_area (dependencies, ndistinct) ON town, area FROM patron;
CREATE STATISTICS kind_price (mcv) ON state, shop, patron_id FROM sale;
CREATE STATISTICS everything ON amount, ware_id FROM item;
CREATE VIEW good AS SELECT * FROM patron WHERE vip;
CREATE TABLE hidden (id integer, name text);
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
ANALYZE patron; ANALYZE sale; ANALYZE item; ANALYZE ware; ANALYZE parcel;
ANALYZE rating; ANALYZE parted; ANALYZE blank;
"""

CONDITIONS: Final = {
    "patron p": """
        p.id = 17 | p.id <> 17 | p.id < 2000 | p.id >= 5990 | p.id <= 1 | p.id > 100 AND p.id < 300 | 4000 < p.id
        p.id BETWEEN 10 AND 5000 | p.id NOT BETWEEN 10 AND 5000 | p.id IN (1, 2, 3) | p.id NOT IN (1, 2, 3, 4)
        p.id = 17.5 | p.id > 3000.5 | p.id::numeric = 4 | p.id + 1 = 18 | p.id % 10 = 3
        p.town = 'town0' | p.town = 'nowhere' | p.town <> 'town0' | p.town < 'town2' | p.town >= 'town30'
        p.town IN ('town0', 'town1', 'x') | p.town LIKE 'town1%' | p.town LIKE '%3' | p.town NOT LIKE 'town%'
        p.name LIKE 'Ada%' | p.name LIKE '%abc%' | p.name ILIKE 'ada%' | p.name LIKE 'Bob 1_3%' | p.name = 'Ada'
        p.name > 'Cy' | p.name >= 'Ada 5' AND p.name < 'Bob 5' | p.name LIKE 'Ada 0' | p.name NOT LIKE '%a%'
        p.mail LIKE 'user1%' | p.mail LIKE '%@a.org' | p.mail = 'user5@a.org' | p.mail > 'user3' | lower(p.mail) = 'x'
        lower(p.name) LIKE 'ada%' | length(p.name) > 10 | p.area = 'AB' | p.area = 'ZZ' | p.area < 'B0'
        p.area IN ('CE', 'AB  ')
        p.born < '1960-01-01' | p.born = '1970-05-05' | p.born >= date '1990-01-01' AND p.born < date '1991-01-01'
        p.born > timestamp '1980-01-01 12:00' | p.born > date '1999-01-01' + interval '1 year' | p.born < '1949-01-01'
        p.since < '2016-01-01' | p.since > timestamptz '2020-01-01 00:00+02' | extract(year from p.since) = 2018
        p.vip | NOT p.vip | p.vip IS TRUE | p.vip IS NOT TRUE | p.vip = true | p.vip = false | p.vip IS NULL
        p.vip IS NOT NULL | p.vip IS FALSE | p.vip IS UNKNOWN | p.remark IS NULL | p.remark IS NOT NULL
        p.remark LIKE 'see%' | p.score > 500 | p.score = 12.5 | p.score < 100.25 AND p.score > 99
        p.score BETWEEN 0.06 - 0.01 AND 0.06 + 0.01 | p.score > 500::float8 | p.balance < 1000 | p.balance > 0.5
        p.balance >= 1e5 AND p.balance <= 2e5 | p.id = 1 OR p.id = 2 | p.town = 'town1' OR p.vip
        (p.town = 'town1' AND p.vip) OR (p.town = 'town1' AND p.id < 10) | NOT (p.town = 'town1' OR p.id < 500)
        p.town = 'town3' AND p.id > 2000 AND p.vip IS NOT NULL | p.id < 500 AND p.id < 800 | p.id > 5000 AND p.id < 10
        p.town = 'town0' AND p.area = 'CE' | p.town = 'town1' AND p.area = 'CE' AND p.id < 1000
        p.town IN ('town0', 'town5') AND p.area = 'CE' | p.id = p.score | p.id < p.score
        p.town IS DISTINCT FROM 'town0' | p.town IS NOT DISTINCT FROM 'town0' | p.town = NULL
        coalesce(p.remark, 'x') = 'x' | p.id = ANY ('{4,5}'::int[])
        p.id <> ALL (ARRAY[4, 5]) | (p.id, p.town) = (5, 'town1') | p.tag @> ARRAY[1] | true | p.id > 0 AND 1 = 1
        p.name ~ '^Ada' | p.id = (SELECT 5) | p.town LIKE NULL | p.score::int = 5 | p.since::date = '2018-05-05'
    """,
    "sale s": """
        s.state = 'open' | s.state IN ('open', 'paid') | s.state NOT IN ('open', 'paid') | s.state > 'p'
        s.placed >= '2018-02-01' AND s.placed < '2018-03-01' | s.placed > '2023-06-01' | s.placed < '2018-01-01 01:00'
        s.placed > '2030-01-01' | s.placed <= date '2019-01-01' | s.shop = 0 | s.shop = 250 | s.shop < 10
        s.total > 1000 | s.total = 0.5 | s.total BETWEEN 10 AND 20 | s.patron_id = 5 | s.patron_id > 5990
        s.id = 5 AND s.state = 'open' | s.placed > '2018-01-01'::timestamp + interval '3 months 2 days'
        s.key = md5('5')::uuid | s.key = 'e4da3b7f-bbce-2345-d777-2b0674a318d5' | s.shop::int = 5 | s.total * 2 > 100
        date_trunc('month', s.placed) = '2019-01-01' | s.state LIKE 'o%' | s.state LIKE '%e%' | s.placed IS NOT NULL
        s.state = 'open' AND s.shop = 0 | s.state = 'open' AND s.shop < 5 AND s.placed < '2019-01-01'
        s.state <> 'open' AND s.shop = 3 AND s.patron_id = 4 | s.state = 'void' AND s.shop = 290
    """,
    "item i": """
        i.amount = 1 AND i.ware_id = 1 | i.amount > 3 AND i.ware_id < 5 | i.amount = 1 AND i.ware_id IS NULL
        i.amount IN (1, 2) AND i.ware_id IN (1, 2, 3) AND i.place = 1 | i.amount = 19 AND i.ware_id = 700
        i.amount = 1 AND (i.ware_id = 1 OR i.ware_id > 700) AND i.price > 50
    """,
    "unseen n": """
        n.id = 5 | n.id < 5 | n.id > 5 AND n.id < 10 | n.label = 'x' | n.label LIKE 'x%' | n.label IS NULL | true
    """,
    "blank b": "b.id = 1 | b.ware_id > 5 | true",
}

JOINS: Final = """
sale s, patron p WHERE s.patron_id = p.id
sale s, patron p WHERE s.patron_id = p.id AND p.town = 'town0'
sale s, patron p WHERE s.patron_id = p.id AND p.vip AND s.state = 'done' AND s.total > 2000
sale s, patron p WHERE s.patron_id = p.id AND p.id = 5
sale s, patron p WHERE s.patron_id = p.id AND s.patron_id < 100
sale s, item i WHERE i.sale_id = s.id
sale s, item i, ware w WHERE i.sale_id = s.id AND i.ware_id = w.id AND w.kind = 'kind 3'
item i, ware w WHERE i.ware_id = w.id AND i.amount > 5
item i, parcel c WHERE i.sale_id = c.sale_id AND i.place = c.place
item i, parcel c WHERE i.sale_id = c.sale_id AND i.place = c.place AND c.carrier = 'carrier 1'
item i, parcel c WHERE i.sale_id = c.sale_id AND i.place = c.place AND i.place = 2
item i, parcel c WHERE i.sale_id = c.sale_id
item i, parcel c, sale s WHERE i.sale_id = c.sale_id AND i.place = c.place AND s.id = i.sale_id AND s.state = 'open'
patron p JOIN sale s ON s.patron_id = p.id JOIN item i ON i.sale_id = s.id JOIN ware w ON w.id = i.ware_id \
WHERE p.town IN ('town0', 'town2') AND w.kind = 'kind 1'
patron p JOIN sale s ON s.patron_id = p.id JOIN item i ON i.sale_id = s.id JOIN ware w ON w.id = i.ware_id \
JOIN parcel c ON c.sale_id = i.sale_id AND c.place = i.place \
WHERE p.vip AND s.placed > '2020-01-01' AND w.title LIKE '%ab%'
patron a, patron b WHERE a.town = b.town AND a.id < 100
patron a, patron b, patron c WHERE a.town = b.town AND b.town = c.town AND a.id < 20 AND b.id < 300
patron a, patron b WHERE a.town = b.town AND a.area = b.area
patron a, patron b WHERE a.town = b.town AND a.town = 'town3'
rating r, ware w WHERE r.ware_code = w.code
rating r, patron p WHERE r.patron = p.id
rating r, patron p, ware w WHERE r.patron = p.id AND r.ware_code = w.code AND r.stars = 5
unseen n, ware w WHERE n.ware_id = w.id
unseen n, item i, ware w WHERE n.ware_id = w.id AND i.ware_id = w.id AND i.amount = 1
blank b, ware w WHERE b.ware_id = w.id
sale s, sale t WHERE s.shop = t.shop AND s.state = 'void' AND t.state = 'done'
sale s, sale t WHERE s.shop = t.shop AND s.total < t.total AND s.id < 500
sale s, sale t WHERE s.shop = t.shop AND s.state <> t.state AND s.id < 500
sale s, patron p WHERE s.patron_id = p.id AND (s.total > 100 OR p.vip)
sale s, patron p WHERE s.patron_id = p.id AND s.placed::date = p.born
sale s, patron p WHERE lower(s.state) = lower(p.town)
sale s, item i, parcel c WHERE s.id = i.sale_id AND s.id = c.sale_id AND s.id = 77
patron p, sale s LEFT JOIN item i ON i.sale_id = s.id WHERE s.patron_id = p.id AND p.vip
patron p LEFT JOIN sale s ON s.patron_id = p.id WHERE s.state = 'open' AND p.id < 50
sale s, item i WHERE (s.id = i.sale_id AND s.state = 'done' AND i.amount > 3) \
OR (s.id = i.sale_id AND i.amount = 1)
patron p, sale s, item i WHERE p.id = s.patron_id AND s.id = i.sale_id \
AND (p.vip AND s.state = 'done' OR p.town = 'town3')
patron p, sale s, item i WHERE p.id = s.patron_id AND s.id = i.sale_id \
AND (p.town = 'town3' AND i.amount = 2 OR p.town = 'town7' AND i.amount = 4)
ware w, item i, sale s WHERE w.id = i.ware_id AND s.id = i.sale_id \
AND (w.kind = 'kind 1' AND i.amount < 3 OR w.kind IN ('kind 2', 'kind 3') AND i.amount > 7 \
OR w.kind = 'kind 4' AND i.amount = 5)
"""


def conditions() -> list[tuple[str, str]]:
    """Table with alias, and condition."""
    return [
        (relation, condition.strip())
        for relation, text in CONDITIONS.items()
        for condition in text.replace("\n", "|").split("|")
        if condition.strip()
    ]


def joins() -> list[str]:
    """FROM and WHERE of joins of two to five tables."""
    return JOINS.strip().splitlines()
