"""One module for each step of the schema; each only adds to what an older store holds."""
