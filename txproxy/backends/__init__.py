"""Whatever answers the PostgreSQL protocol."""
