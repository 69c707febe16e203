#!/usr/bin/env python3
"""What attacks do to a front end: Vestibule's, nginx's, HAProxy's, Caddy's and Apache's, on the same cases.

    python3 benches/hostile/hostile.py [--suite smuggling,differential,tls,attacks] [--peer vestibule,nginx,haproxy,caddy,apache]
        [--case TEXT] [--out FILE]

`smuggling`: each case of cases.py is sent through the front end, and what reached the backend is read by eight readers.
`differential`: ten thousand generated requests through Vestibule; what h11 reads behind it has to be what it logged.
`tls`: what testssl.sh and sslscan find. `attacks`: floods, bombs and slow clients (attacks.py), one after the other, and what one client that
does nothing wrong notices. Exit status 1 where Vestibule does not hold one of the points that are printed at the end. Everything happens on loopback, on free ports; only
processes that were started here are ended. h11 and h2 come from PyPI, into target/hostile.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
    parser.add_argument("--suite", default="smuggling,differential,tls,attacks")
    parser.add_argument("--count", type=int, default=10_000, help="requests of `differential`")
    parser.add_argument("--seed", default="1", help="of `differential`")
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--verbose", action="store_true", help="every case, not only those that are not well")
    options = parser.parse_args()
    if unknown := set(options.suite.split(",")) - set(SUITES):
        parser.error(f"no suite is named {', '.join(sorted(unknown))}")
    enter_environment()

    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o755)
    lines, points = [], []
    try:
        for name, suite in SUITES.items():
            if name in options.suite.split(","):
                began = time.monotonic()
                told, ours = suite(options, folder / name)
                print(f"{name} took {time.monotonic() - began:.0f} s", file=sys.stderr)
                lines += ["", f"## {name}", "", *told]
                points += ours
    finally:
        shutil.rmtree(folder)
    verdicts = [f"| {point} | {figure} | {'yes' if held else 'NO'} |" for point, figure, held in points]
    verdicts = ["| Vestibule | | held |", "|---|---|---|", *verdicts] if points else []
    print("\n".join([*lines, "", *verdicts]))
    if options.out:
        options.out.write_text("\n".join(["# Attacked: what was found", "", *PREAMBLE, "", *verdicts, *lines]) + "\n")
    return int(not all(held for _, _, held in points))


PREAMBLE = [
    "What `make hostile` found; README.md beside this says what is done. *well*: the bystander's 99th percentile was at most three times what it",
    "was directly before, everybody was served, memory stayed within its bound, and the front end is still there.",
]


def leave_out(name, error):
    """Goes on without a front end that does not begin, unless it is the one that all this is about."""
    if name == "vestibule":
        raise error
    print(f"{name} is left out: {error}", file=sys.stderr)


def smuggle(options, folder):
    import smuggling
    from fronts import FRONTS, Front

    async def measure(name):
        try:
            return name, *await smuggling.run(lambda port: Front(name, folder, port).start(), options.case)
        except (RuntimeError, FileNotFoundError) as error:
            leave_out(name, error)
            return name, None, 0

    async def all_of_them():
        return await asyncio.gather(*(measure(name) for name in options.peer.split(",") if name in FRONTS))

    found = [each for each in asyncio.run(all_of_them()) if each[1] is not None]
    kinds = ("TWO READINGS", "SMUGGLED", "SPOOFED", "CRASHED")
    rows = {}
    for name, verdicts, seconds in found:
        count = Counter(verdict.outcome if not verdict.faults else "faulty" for verdict in verdicts)
        faults = {kind.lower(): sum(any(fault.startswith(kind) for fault in verdict.faults) for verdict in verdicts) for kind in kinds}
        told = [f"{number} {kind}" for kind, number in faults.items() if number]
        rows[name] = {"cases": len(verdicts), "refused": count["refused"], "one reading": count["one reading"], **faults}
        rows[name] |= {"seconds": round(seconds), "verdict": ", ".join(told) or "well"}
    lines = table(rows)
    for name, verdicts, _ in found:
        shown = [verdict for verdict in verdicts if verdict.faults or options.verbose]
        if shown:
            lines += ["", f"{name}:", ""] + [f"- {verdict.case}: {verdict.outcome}" for verdict in shown]
    points = []
    if ours := rows.get("vestibule"):
        forwarded = sum(ours[kind.lower()] for kind in kinds[:3])
        points.append(("no case is forwarded in two readings, smuggled or spoofed", f"{forwarded} of {ours['cases']}", not forwarded))
        points.append(("no crash by them", f"{ours['crashed']}", not ours["crashed"]))
    return lines, points


def table(rows):
    """Lines of a table of front ends, whose rows all have the same columns."""
    if not rows:
        return []
    header = list(next(iter(rows.values())))
    lines = ["| front end | " + " | ".join(header) + " |", "|---" * (len(header) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(str(figure) for figure in figures.values()) + " |" for name, figures in rows.items()]


def look_at_tls(options, folder):
    import grades
    from fronts import FRONTS, Front, free_port

    fronts = []
    try:
        for name in options.peer.split(","):
            if name in FRONTS:
                # Nobody asks anything that would take a backend.
                fronts.append(Front(name, folder, free_port()))
                try:
                    fronts[-1].start()
                except (RuntimeError, FileNotFoundError) as error:
                    leave_out(name, error)
                    fronts.pop()
        found = asyncio.run(grades.run(fronts))
    finally:
        for front in fronts:
            front.stop()
    if not found:
        print("the TLS is left out: testssl.sh or sslscan is not installed", file=sys.stderr)
    lines = table({name: scan.row() for name, scan in found.items()})
    for name, scan in found.items():
        lines += ["", f"{name}:", "", *(f"- {each.severity}: {each.text}" for each in scan.findings)] if scan.findings else []
    ours = found.get("vestibule")
    if not ours and "vestibule" in options.peer.split(","):
        return lines, [("TLS is looked at", "testssl.sh or sslscan is missing", False)]
    return lines, [("TLS is graded A, and nothing is found that is worse than low", ours.row()["verdict"], not ours.faults())] if ours else []


def attack(options, folder):
    import attacks
    from fronts import FRONTS, Front

    names = [name for name in attacks.all_names() if options.case in name]
    found = {}
    for peer in options.peer.split(","):
        if peer in FRONTS:
            try:
                found[peer] = asyncio.run(attacks.run(peer, names, folder))
            except (RuntimeError, FileNotFoundError) as error:
                leave_out(peer, error)
    peers = list(found)
    lines = ["| attack | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for name in names:
        verdicts = [", ".join(found[peer][name].faults()) or "well" if name in found[peer] else "" for peer in peers]
        lines.append(f"| {name} | " + " | ".join(verdicts) + " |")
    for name in names:
        lines += ["", f"{name}:", "", *table({peer: each[name].row() for peer, each in found.items() if name in each})]
    ours = found.get("vestibule", {})
    if not ours:
        return lines, [("attacks are made", "none was", False)] if "vestibule" in options.peer.split(",") else []
    missing = [name for name, figures in ours.items() if not figures.steps]
    fallen = [name for name, figures in ours.items() if not figures.stands]
    slowest, most = max(ours, key=lambda name: ours[name].times), max(ours, key=lambda name: ours[name].most)
    slowed, grown = ours[slowest], ours[most]
    refused = sum(figures.failed for figures in ours.values())
    return lines, [
        ("every attack is made", ", ".join(missing) or f"{len(ours)} of {len(ours)}", not missing),
        ("no crash by an attack", ", ".join(fallen) or f"0 of {len(ours)}", not fallen),
        (f"memory stays within {grown.bound:.0f} MiB (docs/limits.md, `limits.memory`)", f"{grown.most:.0f} MiB ({most})", grown.most <= grown.bound),
        (f"the bystander's p99 is at most {attacks.SLOWER} times its normal", f"{slowed.times:.1f} ({slowest})", slowed.times <= attacks.SLOWER),
        ("the bystander is served", f"{refused} requests were not", not refused),
    ]


def compare(options, folder):
    import differential
    from fronts import Front

    if "vestibule" not in options.peer.split(","):
        return [], []
    start = lambda port: Front("vestibule", folder, port).start()  # noqa: E731
    reached, faults = asyncio.run(differential.run(start, options.count, options.seed))
    lines = [f"Of {options.count} generated requests {reached} reached the backend; {len(faults)} are not as they were logged."]
    held = not faults and reached > 0
    return lines + [f"- {fault}" for fault in faults[:50]], [("what reaches the backend is what was logged", f"{len(faults)} of {options.count} are not", held)]


SUITES = {"smuggling": smuggle, "differential": compare, "tls": look_at_tls, "attacks": attack}


if __name__ == "__main__":
    sys.exit(main())
