#!/usr/bin/env python3
"""Checks whose X-Forwarded-* a front end believes, with docassemble behind it (up.sh --behind-https).

  forwarded_check.py http://127.0.0.1:8080/ 127.0.0.2 [ext.example:8443]

The front end at the first address trusts the proxy at the second, and nobody else; the third is the host that browsers are
said to ask for. Both are loopback
addresses of this machine, so requests can be sent from either. Prints PASS or FAIL for each case.
"""
import http.client
import json
import sys
import urllib.parse

URL = urllib.parse.urlsplit(sys.argv[1])
PROXY, STRANGER = sys.argv[2], '127.0.0.1'
PUBLIC = sys.argv[3] if len(sys.argv) > 3 else 'ext.example:8443'
FAR = {'X-Forwarded-Proto': 'https', 'X-Forwarded-Host': PUBLIC, 'X-Forwarded-For': '203.0.113.7'}
failed = 0


def get(source, path, headers):
    """The response to a GET from `source`, with its body."""
    connection = http.client.HTTPConnection(URL.hostname, URL.port, timeout=20, source_address=(source, 0))
    try:
        connection.request('GET', path, headers={'Host': URL.netloc, **headers})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def case(name, got, expected):
    global failed
    failed += got != expected
    print(f'PASS {name}' if got == expected else f'FAIL {name}: got {got!r}, expected {expected!r}', flush=True)


def seen(source, headers):
    """What docassemble was told: its own page /headers."""
    return json.loads(get(source, '/headers', headers)[1])


redirect, _ = get(PROXY, '/start/demo', FAR)
case('a redirect names the host and scheme that the trusted proxy was asked for',
     (redirect.status, redirect.getheader('Location')), (308, f'https://{PUBLIC}/start/demo/'))
case('docassemble believes in https', redirect.getheader('Strict-Transport-Security'), 'max-age=31536000')
told = seen(PROXY, FAR)
case('the client is who the trusted proxy says', told['ipaddress'], '203.0.113.7')
names = {name.lower(): value for name, value in told['headers'].items()}
case('docassemble is told one client address', (names.get('x-forwarded-for'), names.get('x-real-ip')), ('203.0.113.7', '203.0.113.7'))
case('of several addresses the nearest untrusted one is the client',
     seen(PROXY, {'X-Forwarded-For': '1.1.1.1, 2.2.2.2', 'X-Forwarded-Proto': 'https'})['ipaddress'], '2.2.2.2')

redirect, _ = get(STRANGER, '/start/demo', FAR)
case('a stranger does not choose the host of a redirect',
     (redirect.status, urllib.parse.urljoin(sys.argv[1], redirect.getheader('Location') or '')),
     (308, f'http://{URL.netloc}/start/demo/'))
case('a stranger does not choose its address', seen(STRANGER, {**FAR, 'X-Real-IP': '203.0.113.7'})['ipaddress'], STRANGER)
sys.exit(1 if failed else 0)
