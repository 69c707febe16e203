#!/usr/bin/env python3
"""What attacks do to a front end: Vestibule's, nginx's, HAProxy's, Caddy's and Apache's, on the same cases.

    python3 benches/hostile/hostile.py [--suite smuggling,differential,attacks] [--peer vestibule,nginx,haproxy,caddy,apache]
        [--case TEXT] [--out FILE]

`smuggling`: each case of cases.py is sent through the front end, and what reached the backend is read by eight readers.
`attacks`: floods, bombs and slow clients (attacks.py), one after the other, and what one client that does nothing wrong notices.
`differential`: ten thousand generated requests through Vestibule; what h11 reads behind it has to be what it logged. Exit status 1
where Vestibule has let something through that can be read in two ways, or has crashed. Everything happens on loopback, on free ports; only
processes that were started here are ended. h11 and h2 come from PyPI, into target/hostile.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "target" / "hostile"
NEEDED = ["h11==0.16.0", "h2==4.3.0", "hpack==4.1.0"]


def enter_environment():
    """Goes on in an environment that has what is needed."""
    python = FOLDER / "venv" / "bin" / "python"
    if Path(sys.prefix) == FOLDER / "venv":
        return
    if not (FOLDER / "venv" / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *NEEDED], check=True)
        (FOLDER / "venv" / "complete").touch()
    os.execv(python, [python, *sys.argv])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="vestibule,nginx,haproxy,caddy,apache")
    parser.add_argument("--suite", default="smuggling,differential,attacks")
    parser.add_argument("--count", type=int, default=10_000, help="requests of `differential`")
    parser.add_argument("--seed", default="1", help="of `differential`")
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--verbose", action="store_true", help="every case, not only those that are not well")
    options = parser.parse_args()
    enter_environment()

    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o755)
    suites = options.suite.split(",")
    lines, failed = [], False
    try:
        if "smuggling" in suites:
            told, failed = smuggle(options, folder)
            lines += told
        if "differential" in suites:
            told, differ = compare(options, folder)
            lines += told
            failed |= differ
        if "attacks" in suites:
            told, fell = attack(options, folder)
            lines += told
            failed |= fell
    finally:
        shutil.rmtree(folder)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return int(failed)


def smuggle(options, folder):
    import smuggling
    from fronts import FRONTS, Front

    async def measure(name):
        try:
            return name, *await smuggling.run(lambda port: Front(name, folder, port).start(), options.case)
        except (RuntimeError, FileNotFoundError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            return name, None, 0

    async def all_of_them():
        return await asyncio.gather(*(measure(name) for name in options.peer.split(",") if name in FRONTS))

    found = [each for each in asyncio.run(all_of_them()) if each[1] is not None]
    kinds = ("TWO READINGS", "SMUGGLED", "SPOOFED", "CRASHED")
    lines = ["| front end | cases | refused | one reading | " + " | ".join(kind.lower() for kind in kinds) + " | seconds |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, verdicts, seconds in found:
        count = Counter(verdict.outcome if not verdict.faults else "faulty" for verdict in verdicts)
        faults = [sum(any(fault.startswith(kind) for fault in verdict.faults) for verdict in verdicts) for kind in kinds]
        figures = [len(verdicts), count["refused"], count["one reading"], *faults, round(seconds)]
        lines.append(f"| {name} | " + " | ".join(map(str, figures)) + " |")
    for name, verdicts, _ in found:
        shown = [verdict for verdict in verdicts if verdict.faults or options.verbose]
        if shown:
            lines += ["", f"{name}:", ""] + [f"- {verdict.case}: {verdict.outcome}" for verdict in shown]
    ours = [verdict for name, verdicts, _ in found if name == "vestibule" for verdict in verdicts]
    return lines, any(verdict.faults for verdict in ours)


def attack(options, folder):
    import attacks
    from fronts import FRONTS, Front

    names = [name for name in attacks.all_names() if options.case in name]
    found = {}
    for peer in options.peer.split(","):
        if peer in FRONTS:
            start = lambda port, peer=peer: Front(peer, folder / "attacks", port).start()  # noqa: E731
            try:
                found[peer] = asyncio.run(attacks.run(start, names, folder))
            except (RuntimeError, FileNotFoundError) as error:
                print(f"{peer} is left out: {error}", file=sys.stderr)
    lines = []
    for name in names:
        told = {peer: each[name] for peer, each in found.items() if each.get(name)}
        if not told:
            continue
        header = list(next(iter(told.values())))
        lines += ["", f"{name}:", "", "| front end | " + " | ".join(header) + " |", "|---" * (len(header) + 1) + "|"]
        lines += [f"| {peer} | " + " | ".join(figures.values()) + " |" for peer, figures in told.items()]
    ours = found.get("vestibule", {}).values()
    return lines, any(figures and figures["stands"] != "yes" for figures in ours)


def compare(options, folder):
    import differential
    from fronts import Front

    start = lambda port: Front("vestibule", folder / "differential", port).start()  # noqa: E731
    reached, faults = asyncio.run(differential.run(start, options.count, options.seed))
    lines = ["", f"Of {options.count} generated requests {reached} reached the backend; {len(faults)} are not as they were logged."]
    return lines + [f"- {fault}" for fault in faults[:50]], bool(faults)


if __name__ == "__main__":
    sys.exit(main())
