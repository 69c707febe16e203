#!/bin/bash
# Installs the Debian packages that a purpose needs, where they are missing:
#   tests/packages.sh test | lint | deny | bench | soak | restarts | hostile | endurance | docassemble
# This is the one list of them. Exit status: 0 all there, 69 something is missing and cannot be installed here.
set -euo pipefail

case "${1:-}" in
    # the peers of `cargo test`: application servers, other front ends, service managers, clients, a browser, a
    # certificate authority (pebble, with its pebble-challtestsrv), testssl.sh, and a mail server that takes its certificates
    # from us. Stores of objects (moto from PyPI, Azurite from npm) are installed by the tests themselves, under target/.
    # systemd is there for its tools; nothing boots it.
    test) packages="python3 uwsgi-core uwsgi-plugin-python3 gunicorn nginx-light apache2 haproxy
                    supervisor systemd logrotate caddy iproute2 curl openssl nghttp2-client chromium chromium-driver pebble
                    testssl.sh exim4-daemon-light python3-venv npm python3-socketio python3-aiohttp" ;;
    lint) packages="shellcheck python3" ;;
    deny) packages="python3 python3-venv" ;;
    # the gateways to compare with, and the load generators
    bench) packages="nginx-light haproxy apache2 libapache2-mod-xsendfile libapache2-mod-wsgi-py3 caddy h2o lighttpd
                     lighttpd-mod-openssl uwsgi-core uwsgi-plugin-python3 wrk nghttp2-client curl openssl
                     iproute2 python3 python3-yaml python3-cryptography" ;;
    # the front doors to compare with, and the application behind all of them
    soak) packages="nginx-light caddy gunicorn python3" ;;
    restarts) packages="nginx-light haproxy uwsgi-core uwsgi-plugin-python3 python3" ;;
    # the front ends to compare with, and what attacks and looks at them
    hostile) packages="nginx-light haproxy caddy apache2 slowhttptest nghttp2-client testssl.sh sslscan openssl python3
                       python3-venv" ;;
    endurance) packages="openssl python3 python3-venv" ;;
    # what docassemble needs, and the neighbours of its deployments
    docassemble) packages="postgresql redis-server locales curl openssl build-essential pkg-config libpq-dev libldap2-dev
                           libsasl2-dev libmagic1 libzbar0 poppler-utils qpdf nginx-light apache2 haproxy
                           supervisor" ;;
    *) sed -n '2,4p' "$0" >&2; exit 2 ;;
esac

missing=""
for package in $packages; do
    case "$package" in   # any flavour will do
        nginx-light) command -v nginx /usr/sbin/nginx >/dev/null && continue ;;
        npm) command -v npm >/dev/null && continue ;;
        python3-venv) python3 -c 'import ensurepip' 2>/dev/null && continue ;;
    esac
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    {
        echo "\`make $1\` needs Debian packages that are not installed:"
        echo "   $missing"
        if command -v apt-get >/dev/null; then
            echo "Install them as root, then say \`make $1\` again:"
            echo "    apt-get install --no-install-recommends$missing"
        else
            echo "There is no apt-get here; a Debian 12 machine or container has them all."
        fi
        [ "$1" != test ] || echo "\`cargo test\` runs without them: a test whose peer is missing says so and is skipped."
    } >&2
    exit 69
fi

# The servers among them are started by the tests, on ports of their own; none may take port 80 of this machine now.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
echo "installing$missing"
apt-get -o DPkg::Lock::Timeout=300 -qq update
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq -y install --no-install-recommends $missing >/dev/null
