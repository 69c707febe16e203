"""The results of a run: medians over rounds to summary.json beside the raw file, one table of all scenarios with their targets to
stdout, and, if asked for, a page with that table, the machine and a table of each scenario."""
import json, os, statistics as st, sys
def med(v):
    v = [x for x in v if isinstance(x, (int, float)) and not isinstance(x, bool)]
    return st.median(v) if v else None
def load(out):
    global ROWS
    ROWS = [json.loads(l) for l in open(out)]
def summary(rs):
    ok = [r for r in rs if not (r.get('error') or (r.get('ops') == 0 and not r.get('bytes')))]
    keys = {k for r in ok for k, v in r.items() if isinstance(v, (int, float)) and not isinstance(v, bool) and k != 'round'}
    d = {k: med([r.get(k) for r in ok]) for k in sorted(keys)}; d['rounds'] = len(ok)
    if not ok: d['error'] = str(rs[0].get('error', 'no data'))[:100]
    return d
ROWS = []
def paired(scn, peer, key, ref):
    """per-round ratio peer/ref inside the same pass and round -> (median, min, max)"""
    g = {}
    for r in ROWS:
        if r['scn'] == scn and r['peer'] in (peer, ref) and r.get(key) is not None: g.setdefault((r.get('pass'), r['round']), {}).setdefault(r['peer'], []).append(r[key])
    q = [st.median(v[peer]) / st.median(v[ref]) for v in g.values() if peer in v and ref in v and st.median(v[ref])]
    return (st.median(q), min(q), max(q), len(q)) if q else None
F = lambda x, n=0: '–' if x is None else f'{x:,.{n}f}'

# Ours (`vestibule`, or `vestibule-uwsgi` in S9) is measured by `key`, the less the better. A target is a ratio to the best peer, or an amount.
RATIO, AMOUNT = 'ratio', 'amount'
# title, scenario, key, unit, digits, kind of target, target, peers that are left out of the comparison
ROWS_OF_TABLE = [
    ('S1 HTTP/1.1, kept alive', 'S1', 'us_op', 'µs', 1, RATIO, 1.00, ()), ('S2 the same over TLS 1.3', 'S2', 'us_op', 'µs', 1, RATIO, 0.92, ()), ('S3 h2 over TLS, but for h2o', 'S3', 'us_op', 'µs', 1, RATIO, 1.05, ('h2o',)), ('S3 with h2o', 'S3', 'us_op', 'µs', 1, None, None, ()),
    ('S4 full handshake, GET, close', 'S4-full', 'us_op', 'µs', 0, RATIO, 0.55, ()), ('S4 resumed', 'S4-resume', 'us_op', 'µs', 0, RATIO, 0.65, ()), ('S4 without TLS', 'S4-plain', 'us_op', 'µs', 1, RATIO, 1.05, ()),
    ('S5 64 MiB proxied', 'S5', 's_gb', 's/GB', 3, RATIO, 1.00, ()), ('S5 over TLS', 'S5-tls', 's_gb', 's/GB', 3, RATIO, 0.60, ()),
    ('S6 X-Sendfile 1 MiB', 'S6-1m', 's_gb', 's/GB', 3, RATIO, 1.10, ()), ('S6 X-Sendfile 64 MiB', 'S6-64m', 's_gb', 's/GB', 3, RATIO, 1.10, ()), ('S6 1 MiB over TLS', 'S6-1m-tls', 's_gb', 's/GB', 3, RATIO, 0.90, ()), ('S6 64 MiB over TLS', 'S6-64m-tls', 's_gb', 's/GB', 3, RATIO, 0.90, ()),
    ('S7 16 MiB upload, collected first', 'S7', 's_gb', 's/GB', 3, RATIO, 0.60, ()), ('S7 upload, passed on as it comes', 'S7pass', 's_gb', 's/GB', 3, RATIO, 1.00, ('haproxy-tuned', 'apache-tuned')),
    ('S8 websocket echo', 'S8', 'us_op', 'µs', 1, RATIO, 1.00, ()), ('S8 over TLS', 'S8-tls', 'us_op', 'µs', 1, RATIO, 0.90, ()),
    ('S8 idle websocket', 'S8idle', 'kib_conn', 'KiB', 1, AMOUNT, 2, ()), ('S8 idle websocket, TLS', 'S8idle-tls', 'kib_conn', 'KiB', 1, AMOUNT, 11, ()), ('S8 idle HTTP/1.1', 'S8idle-h1', 'kib_conn', 'KiB', 1, None, None, ()), ('S8 idle HTTP/1.1, TLS', 'S8idle-h1-tls', 'kib_conn', 'KiB', 1, AMOUNT, 8, ()), ('S8 idle h2', 'S8idle-h2-tls', 'kib_conn', 'KiB', 1, AMOUNT, 26, ()),
    ('S9 WSGI by uwsgi', 'S9', 'us_op', 'µs', 1, RATIO, 0.95, ()),
    ('S10 cold start', 'S10', 'cold_ms', 'ms', 1, AMOUNT, 10, ()), ('S10 memory at rest', 'S10', 'rss_mb', 'MB', 1, AMOUNT, 15, ()),
    ('S10 20 reloads in 10 s: failed requests, most of all runs', 'S10reload', 'failed', '', 0, AMOUNT, 0, ()), ('S10 p99 meanwhile', 'S10reload', 'p99_us', 'µs', 0, RATIO, 1.00, ()),
    ('S11 10,000 routes against 1', 'S11', 'growth', '×', 2, AMOUNT, 1.03, ()),
    ('S12 5,000 certificates: start', 'S12-5000', 'start_s', 's', 2, AMOUNT, 0.5, ()), ('S12 memory', 'S12-5000', 'rss_mb', 'MB', 0, AMOUNT, 60, ()), ('S12 reload, one changed', 'S12-5000', 'reload_s', 's', 2, AMOUNT, 0.1, ()),
    ('p99 at 70 % of the load that the slowest can take', 'P99', 'p99_us', 'µs', 0, RATIO, 1.00, ())]
OURS = ('vestibule', 'vestibule-uwsgi')

def derive():
    """what is told in other units than it was measured in, for each row, so that rounds stay comparable"""
    for r in ROWS:
        if r['scn'] in ('S10', 'S12-5000') and r.get('rss_kib') is not None: r['rss_mb'] = r['rss_kib'] * 1024 / 1e6
        for k in ('start', 'reload'):
            if r.get(k + '_ms') is not None and r['scn'] == 'S12-5000': r[k + '_s'] = r[k + '_ms'] / 1e3
        if r['scn'] == 'S12-5000' and r.get('reload_ok') is False: r['error'] = 'not reloaded'
    one = {(r['peer'], r['round']): r['us_op'] for r in ROWS if r['scn'] == 'S11-1' and r.get('us_op')}
    ROWS.extend({'scn': 'S11', 'peer': r['peer'], 'round': r['round'], 'growth': r['us_op'] / one[r['peer'], r['round']]} for r in list(ROWS) if r['scn'] == 'S11-10000' and r.get('us_op') and (r['peer'], r['round']) in one)
def values(scn, key, skip=()):
    """by peer: the median of the rounds, or the most where every round counts"""
    g = {}
    for r in ROWS:
        if r['scn'] == scn and r['peer'] not in skip and not r.get('error') and isinstance(r.get(key), (int, float)): g.setdefault(r['peer'], []).append(r[key])
    return {p: max(v) if key == 'failed' else st.median(v) for p, v in g.items()}
def verdict(found, target):
    if target is None: return '–'
    if found <= target: return 'yes'
    return f'no, by {(found / target - 1) * 100:.0f} %' if target else f'no: {found:,.0f}'
def overview():
    """scenario, best peer and its figure, ours, ratio, target, met or not"""
    o = ['| scenario | best peer | | vestibule | ratio | target | met |', '|---|---|---|---|---|---|---|']
    for title, scn, key, unit, digits, kind, target, skip in ROWS_OF_TABLE:
        v = values(scn, key, skip); us = next((p for p in OURS if p in v), None); others = {p: x for p, x in v.items() if p not in OURS}
        if not v: continue
        best = min(others, key=others.get) if others else None; fig = lambda x: f'{F(x, digits)} {unit}'.strip()
        ratio = paired(scn, us, key, best) if us and best and key != 'failed' else None
        aim = '–' if kind is None else f'≤ {target:.2f}' if kind == RATIO else f'≤ {target:g} {unit}'.strip()
        found = None if not us else ratio[0] if kind == RATIO and ratio else v[us] if kind == AMOUNT else None
        o.append(f'| {title} | {best or "–"} | {fig(others[best]) if best else "–"} | {fig(v[us]) if us else "–"} | {f"{ratio[0]:.2f}" if ratio else "–"} | {aim} | {"–" if found is None else verdict(found, target)} |')
    for scn, title in (('Cores-gzip', 'Two cores: throughput of compressed answers'), ('Cores-small', 'Two cores: CPU of small requests')):
        x = scaling(scn)
        if x: o.append(f'| {title} | – | – | {x:.2f} × one | – | ≥ 1.90 | {"yes" if x >= 1.9 else f"no, by {(1.9 / x - 1) * 100:.0f} %"} |')
    return '\n'.join(o)
def scaling(scn):
    """by round, two threads against one: of throughput, what the load took from the gateway given back; or of CPU time alone"""
    g = {}
    for r in ROWS:
        if r['scn'].startswith(scn + '-') and r.get('us_op') and not r.get('error'): g.setdefault((r['peer'], r['round']), {})[r['scn'][-1]] = r
    q = []
    for v in g.values():
        if len(v) < 2: continue
        one, two = v['1'], v['2']
        if scn == 'Cores-small': q.append(2 * one['us_op'] / two['us_op'])
        else: q.append(two['ops_s'] / one['ops_s'] * (two['us_op'] + two['others_us_op']) / two['us_op'])
    return st.median(q) if q else None

def table(s, scn, title, cols, key, high=True, ref='nginx'):
    if scn not in s: return ''
    d = s[scn]; o = [f'\n### {title}\n', '| peer | ' + ' | '.join(c[0] for c in cols) + f' | {key} vs {ref} | n |', '|---' * (len(cols) + 3) + '|']
    b = d.get(ref, {}).get(key)
    good = {p: v.get(key) for p, v in d.items() if v.get(key) is not None and '+' not in p and 'direct' not in p}
    best = (max if high else min)(good, key=good.get) if good else None
    for p, v in sorted(d.items(), key=lambda kv: ((-1 if high else 1) * (kv[1].get(key) or (0 if high else 1e18)))):
        rel = f'{v[key]/b:.2f}' if b and v.get(key) is not None else '–'
        o.append(f'| {"**"+p+"**" if p == best else p} | ' + ' | '.join(F(v.get(c[1]), c[2]) for c in cols) + f' | {rel} | {v.get("rounds")} |' + (f' {v["error"]}' if v.get('error') else ''))
    return '\n'.join(o)
RQ = [('req/s', 'ops_s', 0), ('p50 µs', 'p50_us', 0), ('p99 µs', 'p99_us', 0), ('CPU µs/req', 'us_op', 1), ('CPU0 busy', 'cpu0', 2), ('CPU1 busy', 'cpu1', 2)]
MB = [('MB/s', 'mb_s', 0), ('CPU s/GB', 's_gb', 3), ('CPU0 busy', 'cpu0', 2), ('CPU1 busy', 'cpu1', 2), ('errors', 'errors', 0)]
def main(out, markdown=None):
    global ROWS
    load(out); derive(); s = load_again(); json.dump(s, open(os.path.join(os.path.dirname(os.path.abspath(out)), 'summary.json'), 'w'), indent=1)
    print(overview()); left = sorted({f"{r['peer']} is left out: {one_line(r)}" for r in ROWS if r['scn'] == 'left out'} | {f"{r['scn']}, {r['peer']}, round {r['round'] + 1} failed: {one_line(r)}" for r in ROWS if r.get('error') and r['scn'] != 'left out'})
    print('\n'.join(left))
    if markdown and not any(r['scn'] == 'end' for r in ROWS): print('not written, since the run did not come to its end:', markdown)
    elif markdown:
        head, notes = page(left), ''
        if os.path.exists(markdown):
            before = open(markdown).read(); at = before.find(NOTES); notes = before[at:] if at >= 0 else ''
        open(markdown, 'w').write(head + '\n' + details(s) + '\n' + (notes and '\n' + notes))
        print('written:', markdown)
def one_line(r): return ' '.join(str(r['error']).split())[:160]
NOTES = '## What stands in the way'
def page(left):
    m = next((r for r in reversed(ROWS) if r['scn'] == 'meta'), {}); end = next((r for r in reversed(ROWS) if r['scn'] == 'end'), None)
    o = ['# Next to other gateways', '', f"Made by `make bench`; what the scenarios are, and how it is measured, is in [peers/README.md](peers/README.md). The part from “{NOTES[3:]}” on is written by hand and stays.", '',
         '| | |', '|---|---|', f"| date | {m.get('date')} |", f"| commit | {m.get('commit')} ({m.get('vestibule')}) |", f"| machine | {m.get('cores')} × {m.get('cpu')}, {m.get('memory_gib')} GiB |", f"| system | {m.get('system')}, Linux {m.get('kernel')} |",
         f"| peers | {', '.join(m.get('packages', []))} |", f"| run | {m.get('rounds')} rounds of {m.get('dur')} s" + (f", {end['seconds'] // 60} min {end['seconds'] % 60} s in all" if end else ', not ended') + ' |', '',
         'Figures are medians over the rounds: CPU time of the gateway for a request (µs) or a GB moved, unless the row says otherwise. A ratio is ours to the best peer’s, the median of the ratios within each round; under 5 % is noise. A target that says no amount is one of the ratio.', '',
         overview(), '']
    if left: o += ['Of this run:', ''] + [f'- {line}' for line in left] + ['']
    return '\n'.join(o)
def load_again():
    """the summary, with what was derived"""
    g = {}
    for r in ROWS:
        if r['scn'] not in ('meta', 'end', 'left out'): g.setdefault(r['scn'], {}).setdefault(r['peer'], []).append(r)
    return {scn: {p: summary(rs) for p, rs in ps.items()} for scn, ps in g.items()}
def details(s):
    t = ['## Each scenario']
    A = lambda *a, **k: t.append(table(s, *a, **k))
    for scn, ti, c, k in (('S0-floor', 'S0 floor: wrk straight to the backend (64 conns, h1)', RQ, 'ops_s'), ('S0-down-floor', 'S0 floor: 64 MiB download straight from the backend', MB, 'mb_s'), ('S0-up-floor', 'S0 floor: upload straight to the backend', MB, 'mb_s'), ('S0-ws-floor', 'S0 floor: websocket echo straight to the backend (200 conns)', RQ, 'ops_s')): A(scn, ti, c, k)
    A('S1', 'S1 HTTP/1.1 keep-alive, 200 B, plain', RQ, 'us_op', high=False)
    A('S2', 'S2 HTTP/1.1 keep-alive over TLS 1.3', RQ, 'us_op', high=False)
    A('S3', 'S3 h2 over TLS (h2load -c16 -m32)', [('req/s', 'ops_s', 0), ('mean µs', 'mean_us', 0), ('max µs', 'max_us', 0)] + RQ[3:], 'us_op', high=False)
    for m, ti in (('full', 'S4 full TLS 1.3 handshake + 1 proxied GET + close'), ('resume', 'S4 resumed TLS 1.3 handshake + 1 proxied GET + close'), ('plain', 'S4 control: new TCP connection + 1 proxied GET + close')):
        A('S4-' + m, ti, [('conn/s', 'ops_s', 0), ('resumed', 'extra', 0)] + RQ[1:] + [('errors', 'errors', 0)], 'us_op', high=False)
    for x, ti in (('S5', 'S5 64 MiB proxied download, plain'), ('S5-tls', 'S5 64 MiB proxied download, TLS'), ('S6-1m', 'S6 X-Sendfile 1 MiB, plain'), ('S6-64m', 'S6 X-Sendfile 64 MiB, plain'), ('S6-1m-tls', 'S6 X-Sendfile 1 MiB, TLS'), ('S6-64m-tls', 'S6 X-Sendfile 64 MiB, TLS'), ('S7', 'S7 16 MiB uploads, collected first'), ('S7pass', 'S7 16 MiB uploads, passed on as they come')): A(x, ti, MB, 's_gb', high=False)
    A('S8', 'S8 websocket echo, 200 conns × 64 B', RQ + [('errors', 'errors', 0)], 'us_op', high=False); A('S8-tls', 'S8 same over TLS (wss)', RQ + [('errors', 'errors', 0)], 'us_op', high=False)
    I = [('open', 'conns', 0), ('alive after', 'alive', 0), ('KiB/conn (PSS)', 'kib_conn_pss', 1), ('KiB/conn (RSS)', 'kib_conn', 1), ('RSS before KiB', 'rss0_kib', 0), ('RSS after KiB', 'rss1_kib', 0), ('open s', 'open_s', 2), ('procs', 'procs', 0)]
    
    for x, ti in (('', 'websockets, plain'), ('-tls', 'websockets, TLS'), ('-h1', 'HTTP/1.1 connections, plain'), ('-h1-tls', 'HTTP/1.1 connections, TLS'), ('-h2-tls', 'h2 connections, TLS')): A('S8idle' + x, 'S8 idle ' + ti, I, 'kib_conn', high=False)
    A('S9', 'S9 WSGI, 200 B, 16 conns, 1 process × 5 threads', RQ, 'us_op', high=False, ref='nginx-uwsgi_pass')
    A('S10', 'S10 cold start, idle memory, binary size', [('cold ms', 'cold_ms', 1), ('RSS KiB', 'rss_kib', 0), ('PSS KiB', 'pss_kib', 0), ('procs', 'procs', 0), ('binary KiB', 'bin_kib', 0)], 'cold_ms', high=False)
    A('S10reload', 'S10 20 reloads in a 10 s wrk run (32 conns)', [('requests', 'ops', 0), ('failed', 'failed', 0), ('p50 µs', 'p50_us', 0), ('p99 µs', 'p99_us', 0), ('p99 no reload', 'control_p99_us', 0), ('req/s', 'ops_s', 0), ('req/s no reload', 'control_ops_s', 0), ('quiet reload ms', 'reload_ms', 1), ('peak RSS KiB', 'rss_peak', 0)], 'p99_us', high=False)
    for n in (1, 10000): A(f'S11-{n}', f'S11 {n} routes, request hits the last', RQ[:1] + RQ[2:5] + [('start ms', 'start_ms', 0), ('RSS KiB', 'rss_kib', 0)], 'us_op', high=False)
    for n in (5000,): A(f'S12-{n}', f'S12 {n} certificates', [('start ms', 'start_ms', 0), ('RSS KiB', 'rss_kib', 0), ('PSS KiB', 'pss_kib', 0), ('reload ms', 'reload_ms', 0), ('RSS during/after reload', 'peak_kib', 0)], 'reload_ms', high=False)
    A('P99', 'p99 at 70 % of the load that the slowest can take (open loop, 64 connections)', [('offered/s', 'rate', 0), ('answered/s', 'ops_s', 0), ('p50 µs', 'p50_us', 0), ('p99 µs', 'p99_us', 0), ('p99.9 µs', 'p999_us', 0), ('unanswered', 'unanswered', 0), ('CPU µs/req', 'us_op', 1)], 'p99_us', high=False)
    C = [('req/s', 'ops_s', 0), ('CPU µs/req', 'us_op', 1), ('CPU of load and backend µs/req', 'others_us_op', 1), ('CPU0 busy', 'cpu0', 2), ('CPU1 busy', 'cpu1', 2)]
    for scn, ti in (('small', 'small requests'), ('gzip', '64 KiB of text, compressed')):
        for n in (1, 2): A(f'Cores-{scn}-{n}', f'Two cores: {ti}, {n} thread' + ('s' if n > 1 else ''), C, 'us_op', high=False)
    return '\n'.join(x for x in t if x)
if __name__ == '__main__': main(sys.argv[1])
