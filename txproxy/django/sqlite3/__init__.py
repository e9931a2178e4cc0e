"""Django's SQLite, with all who write to a file taking their turns at txproxy's endpoint.

    DATABASES = {"default": {"ENGINE": "txproxy.django.sqlite3", "NAME": "notes",
                             "HOST": "/run/txproxy", "PORT": 6432}}

NAME is what the proxy's configuration calls the file, or its path; HOST is the directory of the
proxy's unix socket. All else is Django's own backend, and a database in memory is left to that.

    base.py          the connection
    cursor.py        its cursors: Django's placeholders, and what select_for_update() takes
    operations.py    select_for_update()'s SQL;  features.py  what there is besides stock
    creation.py      test databases;  client.py  dbshell;  validation.py  manage.py check
    endpoint.py      where the endpoint is, and what is asked without a file
"""
