#!/usr/bin/env python3
"""A small lint of the Dockerfile, for want of an engine to build it with.

It holds the Dockerfile to this: base images have a tag that is not `latest`; what COPY names is in the
checkout and not kept out by .dockerignore, or comes from an earlier stage; only known instructions;
the last USER is 33 (www-data of Debian); ENTRYPOINT and CMD are in the exec form, and together are a
command that `vestibule` has. Whether it builds is for an engine to say.
"""
import fnmatch
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KNOWN = set('FROM RUN COPY WORKDIR USER EXPOSE VOLUME STOPSIGNAL ENTRYPOINT CMD LABEL ENV ARG'.split())


def instructions(text):
    """(line, instruction, rest) with continuation lines joined."""
    joined, first = '', 0
    for number, line in enumerate(text.splitlines(), 1):
        if not joined and (not line.strip() or line.lstrip().startswith('#')):
            continue
        first = first if joined else number
        joined += line.rstrip('\\') if line.endswith('\\') else line
        if not line.endswith('\\'):
            word, _, rest = joined.strip().partition(' ')
            yield first, word, rest.strip()
            joined = ''


def ignored(path, patterns):
    """Whether .dockerignore keeps `path` out; the last pattern that matches it, or a folder above it, wins."""
    result = False
    folders = [path, *map(str, Path(path).parents)]
    for pattern in patterns:
        wanted = pattern.lstrip('!').strip('/')
        if any(fnmatch.fnmatch(one, wanted) for one in folders):
            result = not pattern.startswith('!')
    return result


def faults(text, root, patterns):
    stages, last = [], {}
    for line, word, rest in instructions(text):
        if word not in KNOWN:
            yield line, f'`{word}` is not an instruction that is used here'
        last[word] = rest
        if word == 'FROM':
            image, _, stage = re.sub(r'^--platform=\S+ ', '', rest).partition(' AS ')
            if image not in stages and (':' not in image or image.endswith(':latest')):
                yield line, f'base image `{image}` has no fixed tag'
            stages.append(stage)
        if word == 'COPY':
            words = rest.split()
            source = next((one[7:] for one in words if one.startswith('--from=')), None)
            if source is not None:
                if source not in stages[:-1]:
                    yield line, f'there is no earlier stage `{source}`'
                continue
            for one in [one for one in words if not one.startswith('--')][:-1]:
                if not (root / one).exists():
                    yield line, f'`{one}` is not in the checkout'
                elif one != '.' and ignored(one.strip('/'), patterns):
                    yield line, f'`{one}` is kept out by .dockerignore'
    if last.get('USER') != '33':
        yield 0, 'the last USER is not 33 (www-data)'
    try:
        command = json.loads(last['ENTRYPOINT']) + json.loads(last['CMD'])
        if command[:2] != ['vestibule', 'serve']:
            yield 0, f'ENTRYPOINT and CMD make `{" ".join(command)}`'
    except (KeyError, ValueError):
        yield 0, 'ENTRYPOINT and CMD have to be there, in the exec form'


def main():
    ignore = (ROOT / '.dockerignore').read_text().splitlines()
    patterns = [line.strip() for line in ignore if line.strip() and not line.startswith('#')]
    found = list(faults((ROOT / 'Dockerfile').read_text(), ROOT, patterns))
    # What the build needs has to reach it, and what is secret or large has to stay out.
    found += [(0, f'.dockerignore keeps `{path}` out') for path in ('Cargo.toml', 'Cargo.lock', 'src', 'config') if ignored(path, patterns)]
    found += [(0, f'.dockerignore lets `{path}` in') for path in ('target', '.git', 'certs/apache.key') if not ignored(path, patterns)]
    for line, problem in found:
        print(f'Dockerfile:{line}: {problem}' if line else f'Dockerfile: {problem}')
    sys.exit(1 if found else 0)


if __name__ == '__main__':
    main()
