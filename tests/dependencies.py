#!/usr/bin/env python3
"""Holds docs/dependencies.md to Cargo.toml and Cargo.lock.

Each direct dependency has one line in its tables and each line is one; the counts of packages are those of a build for
x86-64. Licences, bans and sources are cargo-deny's matter (`make deny`).
"""
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = 'docs/dependencies.md'
COUNTS = re.compile(r'linked into the program: (\d+)\..* building it takes: (\d+), that only its tests take: (\d+)\.')


def counts(metadata):
    """Packages linked into the program; beside these, those that run while it is built; beside both, those of tests."""
    nodes = {node['id']: node for node in metadata['resolve']['nodes']}
    macros = {package['id'] for package in metadata['packages'] if any('proc-macro' in target['kind'] for target in package['targets'])}
    root = metadata['resolve']['root']

    def reached(*kinds):
        """By way of dependencies of these kinds; of the tests' only those of the root count."""
        found, left = set(), [root]
        while left:
            one = left.pop()
            for dependency in nodes[one]['deps']:
                followed = any(kind['kind'] in kinds and (one == root or kind['kind'] != 'dev') for kind in dependency['dep_kinds'])
                if followed and dependency['pkg'] not in found and not (kinds == (None,) and dependency['pkg'] in macros):
                    found.add(dependency['pkg'])
                    left.append(dependency['pkg'])
        return found

    program, build, tests = reached(None), reached(None, 'build'), reached(None, 'build', 'dev')
    return len(program), len(build - program), len(tests - build)


def faults():
    cargo = tomllib.loads((ROOT / 'Cargo.toml').read_text())
    page = (ROOT / PAGE).read_text()
    program, tests = page.split('## Tests')
    for part, table in ((program, 'dependencies'), (tests, 'dev-dependencies')):
        # What tests alone have more features of is the program's.
        direct = set(cargo[table]) - (set(cargo['dependencies']) if part == tests else set())
        lines = re.findall(r'^\| `([^`]+)` \|', part, re.M)
        for name in sorted(direct - set(lines)):
            yield f'{name} of {table} in Cargo.toml has no line there'
        for name in sorted(set(lines) - direct):
            yield f'{name} is none of {table} in Cargo.toml'
        for name in sorted({name for name in lines if lines.count(name) > 1}):
            yield f'{name} has several lines'

    command = 'cargo metadata --locked --format-version 1 --filter-platform x86_64-unknown-linux-gnu'
    metadata = json.loads(subprocess.run(command.split(), cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    said = COUNTS.search(page.replace('\n', ' '))
    found = counts(metadata)
    if said is None or tuple(map(int, said.groups())) != found:
        yield 'packages are {} in the program, {} more in building it, {} more in its tests'.format(*found)


if __name__ == '__main__':
    found = list(faults())
    for fault in found:
        print(f'{PAGE}: {fault}')
    sys.exit(1 if found else 0)
