"""Side-by-side runs against direct connections and PgBouncer; `python -m benchmarks.wire` is the way in."""
