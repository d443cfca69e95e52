"""What the tests stand on: PostgreSQL servers, real proxy processes, free ports, certificates, waiting."""
