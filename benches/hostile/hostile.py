#!/usr/bin/env python3
"""What attacks do to a front end: Vestibule's, nginx's, HAProxy's, Caddy's and Apache's, on the same cases.

    python3 benches/hostile/hostile.py [--peer vestibule,nginx,haproxy,caddy,apache] [--case TEXT] [--out FILE]

`smuggling`: each case of cases.py is sent through the front end, and what reached the backend is read by eight readers. Exit status 1
where Vestibule has let one case through that can be read in two ways, or has crashed. Everything happens on loopback, on free ports; only
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
NEEDED = ["h11==0.16.0", "h2==4.3.0"]


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
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--verbose", action="store_true", help="every case, not only those that are not well")
    options = parser.parse_args()
    enter_environment()

    from fronts import FRONTS, Front
    import smuggling

    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o755)

    async def measure(name):
        try:
            return name, *await smuggling.run(lambda port: Front(name, folder, port).start(), options.case)
        except (RuntimeError, FileNotFoundError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            return name, None, 0

    async def all_of_them():
        return await asyncio.gather(*(measure(name) for name in options.peer.split(",") if name in FRONTS))

    found = [each for each in asyncio.run(all_of_them()) if each[1] is not None]
    lines = []
    kinds = ("TWO READINGS", "SMUGGLED", "SPOOFED", "CRASHED")
    lines.append("| front end | cases | refused | one reading | " + " | ".join(kind.lower() for kind in kinds) + " | seconds |")
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, verdicts, seconds in found:
        count = Counter(verdict.outcome if not verdict.faults else "faulty" for verdict in verdicts)
        faults = [sum(any(fault.startswith(kind) for fault in verdict.faults) for verdict in verdicts) for kind in kinds]
        figures = [len(verdicts), count["refused"], count["one reading"], *faults, round(seconds)]
        lines.append(f"| {name} | " + " | ".join(map(str, figures)) + " |")
    for name, verdicts, _ in found:
        shown = [verdict for verdict in verdicts if verdict.faults or options.verbose]
        if shown:
            lines += ["", f"{name}:"] + [f"- {verdict.case}: {verdict.outcome}" for verdict in shown]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder)
    return int(any(verdict.faults for name, verdicts, _ in found if name == "vestibule" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
