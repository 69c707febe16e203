"""docassemble's WSGI application, which writes down what it begins with (only with up.sh --executed)."""
import os
from urllib.parse import parse_qs

from docassemble.webapp.run import application as real

EXECUTED = os.open(os.environ['EXECUTED'], os.O_WRONLY | os.O_APPEND)


def application(environ, start_response):
    number = parse_qs(environ['QUERY_STRING']).get('n')
    if number:
        os.write(EXECUTED, f'{environ["REQUEST_METHOD"]} {number[0]}\n'.encode())
    return real(environ, start_response)
