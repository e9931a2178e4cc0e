"""SQLite files behind PostgreSQL's protocol, in a process of their own.

The proxy accepts a client, reads its start-up packet, and hands its socket to this process, over a
control channel (`channel`, `process`). From then on the way of a statement is:

    session        bytes of the socket become messages
    conversation   messages become calls of portals, and calls replies (`requests`, `prepared`,
                   `binding`, `replies`)
    course         what a call means in its session's transaction: `transaction` is the table,
                   `wishes` what the session has set, `answering` what needs no SQLite
    file           the loop's side of a file; what a statement is (`statements`, `parser`,
                   `pragmas`), who may write next (`tokens`)
    writer         a thread with the one connection that writes; `train` syncs its commits
    reader         threads with connections that only read
    running        one call on a connection, there or there; what it raises: `errors`, `failures`

All decisions are made in the loop's thread, but for one: whose turn it is, the writer's thread asks
`tokens` itself. A job goes to a thread with all that it needs and comes back whole; what a thread
has done with a batch of jobs is one call into the loop.

`opening` says how a file may be opened at all, `owner` that one process does, `security` what
statements may not do, `checkpoints` when the WAL is copied back, `reaping` who slept too long,
`backup` how to copy a file that is in use, `databases` how to make and remove one, and `report`
what the proxy gets to see.
"""
