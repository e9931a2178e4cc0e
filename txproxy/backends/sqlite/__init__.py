"""SQLite files behind PostgreSQL's protocol, in a process of their own."""
