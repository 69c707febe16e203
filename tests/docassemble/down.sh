#!/bin/bash
# Stops what up.sh started, each by its own pid.  --wipe also deletes the state (then run
# setup.sh again before up.sh; it takes a second).
set -uo pipefail
cd "$(dirname "$0")" || exit
# shellcheck source=env.sh
. ./env.sh
stop() {  # stop PIDFILE SIGNAL LABEL
    alive "$1" || { rm -f "$1"; return 0; }
    local p; p="$(head -1 "$1")"
    kill -"$2" "$p"
    for _ in $(seq 150); do kill -0 "$p" 2>/dev/null || break; sleep 0.2; done
    if kill -0 "$p" 2>/dev/null; then kill -KILL "$p"; echo "$3 had to be killed"; else echo "$3 stopped"; fi
    rm -f "$1"
}
if alive "$RUN/supervisord.pid"; then
    stop "$RUN/supervisord.pid" TERM "supervisord with its programs"
    rm -f "$RUN/uwsgi.pid"
fi
stop "$RUN/websockets.pid" TERM websockets
stop "$RUN/uwsgi.pid" INT uwsgi
stop "$RUN/redis.pid" TERM redis
stop "$DA_STATE/pg/postmaster.pid" INT postgres
[ "${1:-}" = --wipe ] && rm -rf "$DA_STATE" && echo "removed $DA_STATE"
exit 0
