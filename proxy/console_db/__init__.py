"""The administration database: a database of that name exists on no server, and whoever is allowed to log in to it asks
the proxy about itself and tells it what to do, by the commands that PgBouncer's console has.

`commands` reads what was typed, `tables` makes rows of what is known, `replies` puts them into messages: pure
functions. `session` is the client's connection in its worker, `answering` the supervisor's side, where everything is
known; between them runs the control channel. `rights` says who may do what.
"""
