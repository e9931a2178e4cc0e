# With auth_type = "trust" the proxy listens on loopback and unix sockets only: run this with the
# host's network, or with a volume for the directory of the unix socket.
#
#   docker run --network host -v ./proxy.toml:/etc/txproxy/proxy.toml:ro txproxy
#
# SQLite files: a volume for their directory, which must be the user's to write (`--user` if it is not),
# and one for the directory of the unix socket; whoever uses them has a user of the same number.
#
# `docker stop` waits 10 s by default: give it more than shutdown_timeout (--stop-timeout 35).
FROM python:3.13-slim

COPY pyproject.toml setup.py README.md /src/
COPY txproxy /src/txproxy
RUN pip install --no-cache-dir "/src[sqlite]" \
    && rm -rf /src \
    && useradd --system --no-create-home --shell /usr/sbin/nologin txproxy

USER txproxy
EXPOSE 6432
CMD ["txproxy", "serve", "/etc/txproxy/proxy.toml"]
