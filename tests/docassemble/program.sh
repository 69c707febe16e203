#!/bin/bash
# A program as docassemble's image has supervisord run it (its run-uwsgi.sh and run-websockets.sh): docassemble's configuration
# is read first, and the program is a child of this shell, which ends it by a signal of its own when told to end.
#   program.sh SIGNAL COMMAND...
signal="$1"; shift
"$VIRTUAL_ENV/bin/python" -m docassemble.base.read_config --limited "$DA_CONFIG_FILE" > /dev/null
end() {
    kill -"$signal" "$child"
    # The first wait ended with the signal that led here.
    wait "$child"
    exit 0
}
trap end INT TERM
"$@" &
child=$!
wait "$child"
