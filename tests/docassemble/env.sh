# shellcheck shell=bash disable=SC2034,SC2012 # sourced: its variables are used elsewhere; versions are sorted
# Shared settings; sourced by the other scripts.  Override by environment.
DA_VENV="${DA_VENV:-/opt/docassemble-venv}"            # Python environment with docassemble
DA_PYTHON_COPY="${DA_PYTHON_COPY:-/opt/docassemble-python}"
DA_STATE="${DA_STATE:-/var/lib/docassemble-accept}"    # database, files, logs, pid files, sockets
DA_VERSION="${DA_VERSION:-1.10.5}"                     # docassemble.webapp release from PyPI
DA_HTTP_PORT="${DA_HTTP_PORT:-5080}"                   # web application, plain HTTP
DA_WS_PORT="${DA_WS_PORT:-5000}"                       # websockets daemon (docassemble's default)
DA_PG_PORT="${DA_PG_PORT:-54329}"                      # private PostgreSQL cluster
DA_REDIS_PORT="${DA_REDIS_PORT:-63790}"                # private redis
DA_ADMIN_EMAIL="${DA_ADMIN_EMAIL:-admin@admin.com}"
DA_ADMIN_PASSWORD="${DA_ADMIN_PASSWORD:-Accept-1234}"           # 'password' itself must be changed at the first sign-in
RUN="$DA_STATE/run"; LOG="$DA_STATE/log"
PGBIN="$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)"

# as_web COMMAND...: runs a command as www-data, replacing the shell
as_web() { exec setsid setpriv --reuid=www-data --regid=www-data --init-groups "$@"; }

# alive PIDFILE: true when the process named in the first line of PIDFILE runs
alive() { local p; p="$(head -1 "$1" 2>/dev/null)" && [ -n "$p" ] && kill -0 "$p" 2>/dev/null; }
