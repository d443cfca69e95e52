"""Looking at the server from behind the proxy's back."""

from __future__ import annotations

from tests.clients.target import Target
from tests.support.postgres import Postgres


def wait_until_running(postgres: Postgres, target: Target, text: str) -> None:
    """Wait, on the server's side, until a query with ``text`` sleeps in the target's database; 20 seconds at most."""
    script = f"""
        do $$ begin
            for n in 1..2000 loop
                perform pg_stat_clear_snapshot();
                if exists (select from pg_stat_activity where datname = '{target.database}' and state = 'active'
                           and query like '%{text}%' and wait_event = 'PgSleep') then return; end if;
                perform pg_sleep(0.01);
            end loop;
            raise 'the query never started';
        end $$
    """
    postgres.sql(script)
