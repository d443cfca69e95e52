"""A small database where PostgreSQL chooses badly: a condition it cannot see through makes it loop where it should
hash, and a correlated pair of conditions is thought to keep nothing."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = """
CREATE TABLE part (id int PRIMARY KEY, kind int NOT NULL, sort int NOT NULL);
CREATE TABLE sold (id int PRIMARY KEY, part_id int NOT NULL, amount int NOT NULL);
CREATE TABLE noted (sold_id int NOT NULL, word text NOT NULL);
INSERT INTO part SELECT g, g % 50, g % 50 FROM generate_series(1, 10000) g;
INSERT INTO sold SELECT g, 1 + g % 5000, g % 7 FROM generate_series(1, 40000) g;
INSERT INTO noted SELECT 1 + g % 40000, 'w' || g % 10 FROM generate_series(1, 60000) g;
CREATE INDEX ON sold (part_id);
CREATE FUNCTION noisy(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
CREATE FUNCTION odd_equal(int, int) RETURNS bool LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1 = $2; END';
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = odd_equal);
ANALYZE;
"""
# All four conditions are true of the same rows, of which one is expected: looping reads the table for each of them.
_SIDE: Final = "{0}.kind = 7 AND {0}.sort = 7 AND {0}.kind + {0}.sort = 14 AND {0}.kind - {0}.sort = 0"
SLOW: Final = (
    f"SELECT count(*) FROM part p JOIN part q ON q.id + 0 = p.id + 0 WHERE {_SIDE.format('p')} AND {_SIDE.format('q')}"
)
QUICK: Final = "SELECT count(*) FROM part p JOIN sold s ON s.part_id = p.id WHERE p.id = 5"
