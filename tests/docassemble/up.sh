#!/bin/bash
# Starts PostgreSQL, redis, the docassemble web application (uWSGI) and the
# docassemble websockets daemon in the background, and waits until they answer.
#   --root /da/        URL path of the application (default /)
#   --web-server NAME  nginx (default): files go out by X-Accel-Redirect
#                      apache: files go out by X-Sendfile;  none: neither
#   --no-xsendfile     the application sends files itself
#   --behind-https     "behind https load balancer: True"
#   --https            "use https: True"
#   --url-root URL     "url root", e.g. https://localhost:8443 (default: not set)
#   --debug-env        adds /__environ: the WSGI environ of the request as JSON
#   --executed FILE    the method and `n` of the query of each request are written there as it is begun with
#   --supervisor       uwsgi and websockets are programs of a supervisord at unix:$DA_STATE/run/supervisor.sock, as in
#                      docassemble's image; its configuration, for supervisorctl, is $DA_STATE/supervisord.conf
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=env.sh
. ./env.sh
root=/; web=nginx; xsend=True; lb=False; https=False; urlroot=; module=docassemble.webapp.run; executed=; supervisor=
while [ $# -gt 0 ]; do
    case "$1" in
        --root) root="$2"; shift ;;
        --web-server) web="$2"; shift ;;
        --no-xsendfile) xsend=False ;;
        --behind-https) lb=True ;;
        --https) https=True ;;
        --url-root) urlroot="$2"; shift ;;
        --debug-env) module=debug_env ;;
        --executed) module=executed; executed="$2"; shift ;;
        --supervisor) supervisor=1 ;;
        *) sed -n '2,16p' "$0"; exit 2 ;;
    esac
    shift
done
case "$root" in /|/*/) ;; *) echo "--root must begin and end with /" >&2; exit 2 ;; esac
if [ ! -x "$DA_VENV/bin/uwsgi" ] || [ ! -d "$DA_STATE/pg" ]; then echo "run setup.sh first" >&2; exit 1; fi
mount="${root%/}"; mount="${mount:-/}"
install -d -m 755 "$DA_STATE"
install -d -m 755 -o www-data -g www-data "$RUN" "$LOG" "$DA_STATE/files" "$DA_STATE/home"
umask 022
touch "$LOG/uwsgi.log" "$LOG/websockets.log"; chown www-data "$LOG/uwsgi.log" "$LOG/websockets.log"
t0=$(date +%s.%N)

wait_for() {  # wait_for SECONDS LABEL COMMAND...
    local n=$(( $1 * 5 )) label="$2"; shift 2
    until "$@" >/dev/null 2>&1; do
        n=$((n - 1)); [ "$label" != "web application" ] || [ ! -s "$RUN/uwsgi.pid" ] || alive "$RUN/uwsgi.pid" || n=0
        [ "$n" -gt 0 ] || { echo "$label did not come up; see $LOG" >&2; exit 1; }
        sleep 0.2
    done
}

# PostgreSQL and redis
if ! alive "$DA_STATE/pg/postmaster.pid"; then
    touch "$LOG/postgres.log"; chown postgres "$LOG/postgres.log"
    (cd /; runuser -u postgres -- "$PGBIN/pg_ctl" -D "$DA_STATE/pg" -l "$LOG/postgres.log" -w -s \
        -o "-p $DA_PG_PORT -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp -c fsync=off" start)
fi
psql() { "$PGBIN/psql" -X -q -h 127.0.0.1 -p "$DA_PG_PORT" -U postgres "$@"; }
[ -n "$(psql -tAc "select 1 from pg_roles where rolname='docassemble'")" ] ||
    psql -c "create role docassemble login password 'abc123'"
[ -n "$(psql -tAc "select 1 from pg_database where datname='docassemble'")" ] ||
    psql -c "create database docassemble owner docassemble"
if ! alive "$RUN/redis.pid"; then
    redis-server --bind 127.0.0.1 --port "$DA_REDIS_PORT" --daemonize yes --save '' --appendonly no \
        --dir "$DA_STATE" --pidfile "$RUN/redis.pid" --logfile "$LOG/redis.log" >/dev/null
fi
wait_for 20 redis redis-cli -p "$DA_REDIS_PORT" ping

# Configuration.  The secret key stays the same so that sessions outlive a restart.
[ -s "$DA_STATE/secret" ] || head -c 24 /dev/urandom | base64 | tr -dc 'A-Za-z0-9' > "$DA_STATE/secret"
wsgi="$DA_STATE/docassemble.wsgi"; touch "$wsgi" "$DA_STATE/ready"; chown www-data "$wsgi"
cat > "$DA_STATE/config.yml" <<Y
debug: True
allow demo: True
enable playground: True
exitpage: https://docassemble.org
db:
  prefix: postgresql+psycopg2://
  name: docassemble
  user: docassemble
  password: abc123
  host: 127.0.0.1
  port: $DA_PG_PORT
redis: redis://127.0.0.1:$DA_REDIS_PORT
secretkey: $(cat "$DA_STATE/secret")
mail:
  server: localhost
  default sender: '"Administrator" <no-reply@example.com>'
default interview: docassemble.base:data/questions/default-interview.yml
language: en
locale: en_US.utf8
timezone: UTC
default title: docassemble
# what the front end has to agree with
root: $root
web server: $web
xsendfile: $xsend
use nginx to serve files: $xsend
use https: $https
behind https load balancer: $lb
${urlroot:+url root: $urlroot}
external hostname: localhost
websockets ip: 127.0.0.1
websockets port: $DA_WS_PORT
# where things are
uploads: $DA_STATE/files
log: $LOG
webapp: $wsgi
ready file: $DA_STATE/ready
packages: $DA_VENV
pypirc path: $DA_STATE/home/.pypirc
# as in docassemble's own defaults for new servers
allow non-idempotent questions: False
restrict input variables: True
new markdown to docx: True
new template markdown behavior: True
default icons: font awesome
javascript defer: True
enable unoconv: False
Y
cat > "$DA_STATE/uwsgi.ini" <<I
[uwsgi]
master = true
enable-threads = true
processes = 1
threads = 6
vhost = true
manage-script-name = true
buffer-size = 32768
socket = $RUN/docassemble.sock
chmod-socket = 666
http-socket = 127.0.0.1:$DA_HTTP_PORT
mount = $mount=$module:application
venv = $DA_VENV
py-executable = $DA_VENV/bin/python
pythonpath = $DA_STATE/modules
pidfile = $RUN/uwsgi.pid
touch-reload = $wsgi
I
# In docassemble's image TERM makes uWSGI reload, and the script around it sends INT.
[ -n "$supervisor" ] || echo "die-on-term = true" >> "$DA_STATE/uwsgi.ini"
# Where www-data can read them, wherever this is.
install -d -m 755 "$DA_STATE/modules"
install -m 644 debug_env.py executed.py "$DA_STATE/modules"
install -m 755 program.sh "$DA_STATE"
[ -z "$executed" ] || { : > "$executed"; chown www-data "$executed"; export EXECUTED="$executed"; }

export DA_CONFIG_FILE="$DA_STATE/config.yml" HOME="$DA_STATE/home" LANG=en_US.UTF-8 PATH="$DA_VENV/bin:/usr/bin:/bin"
[ ! -d "$DA_PYTHON_COPY/lib" ] || export LD_LIBRARY_PATH="$DA_PYTHON_COPY/lib"   # libpython of the copied Python
export DA_ADMIN_EMAIL DA_ADMIN_PASSWORD VIRTUAL_ENV="$DA_VENV"
# tables and the administrator's account, once
if [ ! -f "$DA_STATE/tables-$DA_VERSION" ]; then
    (cd /tmp; as_web "$DA_VENV/bin/python" -m docassemble.webapp.create_tables "$DA_CONFIG_FILE") > "$LOG/create_tables.log" 2>&1 ||
        { tail -5 "$LOG/create_tables.log" >&2; exit 1; }
    touch "$DA_STATE/tables-$DA_VERSION"
fi
t1=$(date +%s.%N)
if [ -n "$supervisor" ]; then
    rm -f "$RUN/uwsgi.pid"
    cat > "$DA_STATE/supervisord.conf" <<S
[unix_http_server]
file = $RUN/supervisor.sock
chown = www-data:www-data
[supervisord]
user = root
pidfile = $RUN/supervisord.pid
logfile = $LOG/supervisord.log
childlogdir = $LOG
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://$RUN/supervisor.sock
[program:uwsgi]
command = bash $DA_STATE/program.sh INT $DA_VENV/bin/uwsgi --ini $DA_STATE/uwsgi.ini
directory = /tmp
user = www-data
autorestart = true
startretries = 0
startsecs = 5
stopwaitsecs = 20
stopasgroup = true
killasgroup = true
redirect_stderr = true
stdout_logfile = $LOG/uwsgi.log
[program:websockets]
command = bash $DA_STATE/program.sh TERM $DA_VENV/bin/python -u -m docassemble.webapp.socketserver $DA_CONFIG_FILE
directory = /tmp
user = www-data
autorestart = true
startretries = 1
startsecs = 1
stopwaitsecs = 20
killasgroup = true
redirect_stderr = true
stdout_logfile = $LOG/websockets.log
S
    supervisord -c "$DA_STATE/supervisord.conf"
fi
if [ -z "$supervisor" ] && ! alive "$RUN/uwsgi.pid"; then
    rm -f "$RUN/uwsgi.pid"
    (cd /tmp; (as_web "$DA_VENV/bin/uwsgi" --ini "$DA_STATE/uwsgi.ini") >> "$LOG/uwsgi.log" 2>&1 < /dev/null &)
fi
if [ -z "$supervisor" ] && ! alive "$RUN/websockets.pid"; then
    (cd /tmp; (as_web "$DA_VENV/bin/python" -u -m docassemble.webapp.socketserver "$DA_CONFIG_FILE") \
        >> "$LOG/websockets.log" 2>&1 < /dev/null & echo $! > "$RUN/websockets.pid")
fi
wait_for 180 "web application" curl -sf -o /dev/null "http://127.0.0.1:$DA_HTTP_PORT${root}health_check"
t2=$(date +%s.%N)
wait_for 60 "websockets daemon" curl -sf -o /dev/null "http://127.0.0.1:$DA_WS_PORT/socket.io/?EIO=4&transport=polling"

cat <<T
docassemble is up (database $(awk "BEGIN{printf \"%.1f\",$t1-$t0}") s, application $(awk "BEGIN{printf \"%.1f\",$t2-$t1}") s)
  application, HTTP      http://127.0.0.1:$DA_HTTP_PORT$root
  application, uwsgi     unix:$RUN/docassemble.sock
  websockets daemon      http://127.0.0.1:$DA_WS_PORT/socket.io/   (public path ${root}ws/socket.io/)
  files sent by          $(case "$xsend $web" in "True nginx") echo "X-Accel-Redirect: /xaccel/PATH" ;; "True apache") echo "X-Sendfile: /PATH" ;; *) echo the application ;; esac)
  administrator          $DA_ADMIN_EMAIL / $DA_ADMIN_PASSWORD
  state, logs, pid files $DA_STATE
T
