"""`txproxy doctor`: what may be wrong with an SQLite file, a Django site, a proxy and its servers.

Looking and judging are apart: one function gathers facts (`files`, `holders`, `inside`, `site`,
`audit`, `servers`), another makes findings of them (`sqlite`, `django`, `audit`, `servers`), and
knows nothing else. Nothing is ever written to what is looked at.

SQLite's locks are POSIX locks, which belong to a process: closing a file drops all locks that the
process has on it, whoever opened it. So whatever is read of a database file without SQLite is read
before SQLite has it open here, and the process that examines must have it open in no other way.
"""
