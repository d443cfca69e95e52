"""The texts that `planner.catalog_load` asks the server with: a handful for the whole database, whatever its size.

Each works on PostgreSQL 14 and later and reads only what the connection's user may see.
"""

from __future__ import annotations

from typing import Final

SETTINGS: Final = """
    SELECT set_config('datestyle', 'ISO, YMD', true), set_config('timezone', 'UTC', true),
           set_config('intervalstyle', 'postgres', true), set_config('extra_float_digits', '1', true),
           set_config('bytea_output', 'hex', true), set_config('jit', 'off', true),
           set_config('statement_timeout', $1, true), set_config('lock_timeout', '1s', true),
           set_config('max_parallel_workers_per_gather', '0', true)
"""
"""All for the transaction alone; dates in the one form that is read."""

DATABASE: Final = """
    SELECT current_database() AS name, current_setting('server_version_num')::int AS version,
           current_schemas(false)::text[] AS path,
           EXISTS (SELECT FROM pg_settings WHERE name = 'pg_hint_plan.enable_hint') AS hint_plan,
           EXISTS (SELECT FROM pg_settings WHERE name = 'pg_plan_advice.advice') AS plan_advice
"""

RELATIONS: Final = """
    SELECT c.oid::bigint, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.reltuples, c.relpages,
           c.relrowsecurity AS row_security, c.relhassubclass AS has_children,
           EXISTS (SELECT FROM pg_class t WHERE t.relname = c.relname AND t.relpersistence = 't') AS shadowed,
           CASE WHEN c.relkind NOT IN ('r', 'm') THEN 0
                WHEN l.relation IS NOT NULL THEN c.relpages
                ELSE coalesce(pg_relation_size(c.oid), 0) / 8192 END AS now_pages,
           coalesce(substring(array_to_string(c.reloptions, ' ') FROM 'fillfactor=([0-9]+)')::int, 100) AS fill,
           CASE WHEN c.relrowsecurity OR c.relkind NOT IN ('r', 'm', 'p') THEN false
                ELSE has_table_privilege(c.oid, 'SELECT') END AS readable
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN (SELECT DISTINCT relation FROM pg_locks WHERE mode = 'AccessExclusiveLock') l ON l.relation = c.oid
    WHERE n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
          AND c.relpersistence <> 't'
    ORDER BY c.relpages DESC, c.oid LIMIT $1
"""
"""The largest first, so that a bound leaves out the smallest. Asking the size of a table that is being altered would
wait for it: its last known size serves. ``shadowed``: some session may see a temporary table of the same name instead;
whose, the catalog cannot tell."""

SYSTEM_RELATIONS: Final = """
    SELECT c.oid::bigint, c.relname AS name, c.relkind::text AS kind
    FROM pg_class c WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind IN ('r', 'v')
"""

COLUMNS: Final = """
    SELECT a.attrelid::bigint AS oid, a.attname AS name, a.attnum::int AS number, a.attnotnull AS not_null,
           format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, NULL) AS type,
           CASE WHEN a.attlen > 0 THEN a.attlen::int
                WHEN t.typname IN ('varchar', 'bpchar') AND a.atttypmod > 4 THEN least(a.atttypmod - 4, 32)
                ELSE 32 END AS width
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
"""

STATISTICS: Final = """
    SELECT s.schemaname AS schema, s.tablename AS table, s.attname AS column, s.inherited, s.null_frac, s.avg_width,
           s.n_distinct, s.most_common_vals::text::text[] AS common, s.most_common_freqs::float8[] AS frequencies,
           s.histogram_bounds::text::text[] AS histogram, s.correlation
    FROM pg_stats s
    WHERE s.schemaname = ANY ($1::name[]) AND s.tablename = ANY ($2::name[])
"""

INDEXES: Final = """
    SELECT i.indrelid::bigint AS oid, c.relname AS name, i.indisunique AS unique, i.indpred IS NOT NULL AS partial,
           (i.indkey::int2[])[0:i.indnkeyatts - 1]::int[] AS keys, m.amname = 'btree' AS sorted
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
    WHERE i.indrelid = ANY ($1::oid[]) AND i.indisvalid
    ORDER BY i.indrelid, i.indexrelid
"""

FOREIGN_KEYS: Final = """
    SELECT conrelid::bigint AS oid, confrelid::bigint AS target, conkey::int[] AS keys, confkey::int[] AS target_keys
    FROM pg_constraint
    WHERE contype = 'f' AND convalidated AND conrelid = ANY ($1::oid[])
    ORDER BY oid
"""

INHERITANCE: Final = "SELECT inhrelid::bigint AS child, inhparent::bigint AS parent FROM pg_inherits"

EXTENDED: Final = """
    SELECT e.stxrelid::bigint AS oid, e.stxkeys::int2[]::int[] AS keys, e.stxexprs IS NOT NULL AS expressions,
           s.n_distinct::text AS n_distinct, s.dependencies::text AS dependencies,
           s.most_common_vals AS common, s.most_common_freqs AS frequencies,
           s.most_common_base_freqs AS base_frequencies
    FROM pg_statistic_ext e
    JOIN pg_namespace n ON n.oid = e.stxnamespace
    JOIN pg_stats_ext s ON s.statistics_schemaname = n.nspname AND s.statistics_name = e.stxname
    WHERE e.stxrelid = ANY ($1::oid[]) AND NOT s.inherited
    ORDER BY e.oid
"""

VOLATILE: Final = "SELECT DISTINCT lower(proname) AS name FROM pg_proc WHERE provolatile = 'v'"
"""A name with a volatile variant counts as volatile: which variant a call means is not looked up."""

WATCH: Final = """
    SELECT (SELECT sum(hashtextextended(concat_ws('/', n.nspname, c.relname, c.relkind, c.relrowsecurity,
                                                  c.relnatts, c.relhasindex, c.relfilenode), 0))
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'i') AND c.relpersistence <> 't'
              AND n.nspname NOT LIKE 'pg\\_%')::text AS tables,
           (SELECT sum(hashtextextended(concat_ws('/', a.attrelid, a.attname, a.atttypid, a.attisdropped), 0))
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            WHERE a.attnum > 0 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.oid >= 16384
              AND c.relpersistence <> 't')::text AS columns,
           (SELECT count(*) || '/' || coalesce(sum(analyze_count + autoanalyze_count), 0)
            FROM pg_stat_user_tables) AS analyzed,
           (SELECT coalesce(sum(n_mod_since_analyze), 0) FROM pg_stat_user_tables)::float8 AS changed,
           (SELECT coalesce(sum(greatest(reltuples, 0)), 0) FROM pg_class WHERE relkind IN ('r', 'm'))::float8 AS rows
"""
"""One row that tells whether a refresh is due: definitions, analyzes, and how much was written since. About 3 ms."""
