#!/bin/bash
# Installs the real docassemble (web application and websockets daemon) and what
# it needs on a Debian 12 machine, from apt and PyPI only.  Safe to run again.
# Exit status 69: something is missing that cannot be installed here; the message says what.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=env.sh
. ./env.sh

if [ "$(id -u)" != 0 ]; then
    echo "docassemble is set up and run as root here: it starts PostgreSQL as postgres and the application as www-data" >&2
    exit 69
fi

# 1. A Python of at least 3.12 (docassemble's floor; Debian 12's own is 3.11).  First, since nothing else can stand in for it.
ok() { [ -x "$1" ] && "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3,12),(3,13)))' 2>/dev/null; }
py="${PYTHON:-}"
if [ -z "$py" ]; then
    for c in "$DA_VENV/bin/python" "$(command -v python3.12 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12 \
             "$(command -v python3.13 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python3.13; do
        if ok "$c"; then py="$c"; break; fi
    done
fi
ok "${py:-none}" || { echo "docassemble needs Python 3.12 or 3.13, and there is none here; install one, or set PYTHON=/path/to/python3.12" >&2; exit 69; }

# 2. Debian packages.
../packages.sh docassemble
locale -a | grep -qi '^en_US.utf8$' || localedef -i en_US -f UTF-8 en_US.UTF-8

# docassemble runs as www-data, as on a real server (its uploads have mode 0600, so
# this matters to whoever sends files).  A Python inside a home directory is out of www-data's
# reach: copy it.
if ! (cd /; runuser -u www-data -- "$py" -c '' 2>/dev/null); then
    prefix="$("$py" -c 'import sys; print(sys.base_prefix)')"; name="$(basename "$(readlink -f "$py")")"
    if [ ! -x "$DA_PYTHON_COPY/bin/$name" ]; then
        mkdir -p "$DA_PYTHON_COPY"
        cp -a "$prefix/." "$DA_PYTHON_COPY/"
    fi
    py="$DA_PYTHON_COPY/bin/$name"
fi

# 3. The virtual environment.  A stamp file says which release is complete in it.
stamp="$DA_VENV/.docassemble-$DA_VERSION"
if [ ! -f "$stamp" ]; then
    [ -x "$DA_VENV/bin/pip" ] || "$py" -m venv "$DA_VENV"
    "$DA_VENV/bin/pip" install -q \
        "docassemble.webapp==$DA_VERSION" "docassemble.demo==$DA_VERSION" \
        uwsgi "python-socketio[client]" requests
    # docassemble will not start unless it can write where its packages are
    site="$("$DA_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    chown www-data "$site" "$site/docassemble"
    touch "$stamp"
fi

# docassemble imports a language package that insists on downloading three NLTK
# corpora (WordNet) when they are absent, which no package registry carries.  Only
# word inflection is used, by rules, so empty corpora of the right shape do.
nltk="$DA_VENV/nltk_data/corpora"
if [ ! -f "$nltk/wordnet/lexnames" ]; then
    mkdir -p "$nltk/wordnet" "$nltk/wordnet_ic" "$nltk/sentiwordnet"
    for f in cntlist.rev index.sense index.adj index.adv index.noun index.verb \
             data.adj data.adv data.noun data.verb adj.exc adv.exc noun.exc verb.exc; do : > "$nltk/wordnet/$f"; done
    echo "  1 WordNet 3.0 Copyright (empty stand-in)" > "$nltk/wordnet/data.adj"
    printf 'wnver::empty\n1n 1 ROOT\n2v 1 ROOT\n' > "$nltk/wordnet_ic/ic-brown.dat"
    printf '00\tadj.all\t3\n' > "$nltk/wordnet/lexnames"
fi

# 4. The private PostgreSQL cluster.
if [ ! -f "$DA_STATE/pg/PG_VERSION" ]; then
    install -d -m 755 "$DA_STATE"
    install -d -m 700 -o postgres -g postgres "$DA_STATE/pg"
    (cd /; runuser -u postgres -- "$PGBIN/initdb" -D "$DA_STATE/pg" -E UTF8 --locale=C.UTF-8 -A trust >/dev/null)
fi
echo "docassemble $DA_VERSION is installed in $DA_VENV; state is in $DA_STATE"
