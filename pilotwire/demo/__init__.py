"""The demo: an e-commerce database as such databases are, a working day's queries on it, and a model that steers them.

`schema` and `data` make the database, `workload` the queries that are timed, `training_queries` those that the model
learns from (never the same), `runner` trains and times, `report` prints.
"""
