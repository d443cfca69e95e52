"""SQL in, advice out: parses a query, estimates its joins, asks the models, and says what PostgreSQL should plan."""
