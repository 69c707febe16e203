"""medians over rounds -> summary.json beside the raw file + markdown tables (stdout)"""
import json, os, statistics as st, sys
def med(v):
    v = [x for x in v if isinstance(x, (int, float)) and not isinstance(x, bool)]
    return st.median(v) if v else None
def load(out):
    rows = [json.loads(l) for l in open(out)]; g = {}
    for r in rows: g.setdefault(r['scn'], {}).setdefault(r['peer'], []).append(r)
    s = {}
    for scn, ps in g.items():
        for p, rs in ps.items():
            ok = [r for r in rs if not (r.get('error') or (r.get('ops') == 0 and not r.get('bytes')))]
            keys = {k for r in ok for k, v in r.items() if isinstance(v, (int, float)) and not isinstance(v, bool) and k != 'round'}
            d = {k: med([r.get(k) for r in ok]) for k in keys}
            d['rounds'] = len(ok)
            if ok and 'ops_s' in d and len(ok) > 1: d['spread'] = round((max(r.get('ops_s', 0) for r in ok) - min(r.get('ops_s', 0) for r in ok)) / max(1e-9, d['ops_s']), 3)
            if not ok: d['error'] = rs[0].get('error', 'no data')[:100]
            s.setdefault(scn, {})[p] = d
    global ROWS; ROWS = rows
    return s
ROWS = []
def paired(scn, peer, key, ref):
    """per-round ratio peer/ref inside the same pass and round -> (median, min, max)"""
    g = {}
    for r in ROWS:
        if r['scn'] == scn and r['peer'] in (peer, ref) and r.get(key) is not None: g.setdefault((r.get('pass'), r['round']), {}).setdefault(r['peer'], []).append(r[key])
    q = [st.median(v[peer]) / st.median(v[ref]) for v in g.values() if peer in v and ref in v and st.median(v[ref])]
    return (st.median(q), min(q), max(q), len(q)) if q else None
F = lambda x, n=0: '–' if x is None else f'{x:,.{n}f}'
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
def main(out):
    s = load(out); json.dump(s, open(os.path.join(os.path.dirname(os.path.abspath(out)), 'summary.json'), 'w'), indent=1); t = []
    A = lambda *a, **k: t.append(table(s, *a, **k))
    for scn, ti, c, k in (('S0-floor', 'S0 floor: wrk straight to the backend (64 conns, h1)', RQ, 'ops_s'), ('S0-down-floor', 'S0 floor: 64 MiB download straight from the backend', MB, 'mb_s'), ('S0-up-floor', 'S0 floor: upload straight to the backend', MB, 'mb_s'), ('S0-ws-floor', 'S0 floor: websocket echo straight to the backend (200 conns)', RQ, 'ops_s')): A(scn, ti, c, k)
    A('S1', 'S1 HTTP/1.1 keep-alive, 200 B, plain', RQ, 'us_op', high=False)
    A('S2', 'S2 HTTP/1.1 keep-alive over TLS 1.3', RQ, 'us_op', high=False)
    A('S3', 'S3 h2 over TLS (h2load -c16 -m32)', [('req/s', 'ops_s', 0), ('mean µs', 'mean_us', 0), ('max µs', 'max_us', 0)] + RQ[3:], 'us_op', high=False)
    for m, ti in (('full', 'S4 full TLS 1.3 handshake + 1 proxied GET + close'), ('resume', 'S4 resumed TLS 1.3 handshake + 1 proxied GET + close'), ('plain', 'S4 control: new TCP connection + 1 proxied GET + close')):
        A('S4-' + m, ti, [('conn/s', 'ops_s', 0), ('resumed', 'extra', 0)] + RQ[1:] + [('errors', 'errors', 0)], 'us_op', high=False)
    for x, ti in (('S5', 'S5 64 MiB proxied download, plain'), ('S5-tls', 'S5 64 MiB proxied download, TLS'), ('S6-1m', 'S6 X-Sendfile 1 MiB, plain'), ('S6-64m', 'S6 X-Sendfile 64 MiB, plain'), ('S6-1m-tls', 'S6 X-Sendfile 1 MiB, TLS'), ('S6-64m-tls', 'S6 X-Sendfile 64 MiB, TLS'), ('S7', 'S7 16 MiB uploads, plain'), ('S7-tls', 'S7 16 MiB uploads, TLS')): A(x, ti, MB, 's_gb', high=False)
    A('S8', 'S8 websocket echo, 200 conns × 64 B', RQ + [('errors', 'errors', 0)], 'us_op', high=False); A('S8-tls', 'S8 same over TLS (wss)', RQ + [('errors', 'errors', 0)], 'us_op', high=False)
    I = [('open', 'conns', 0), ('alive after', 'alive', 0), ('KiB/conn (PSS)', 'kib_conn_pss', 1), ('KiB/conn (RSS)', 'kib_conn', 1), ('RSS before KiB', 'rss0_kib', 0), ('RSS after KiB', 'rss1_kib', 0), ('open s', 'open_s', 2), ('procs', 'procs', 0)]
    
    for x, ti in (('', 'websockets, plain'), ('-tls', 'websockets, TLS'), ('-h1', 'HTTP/1.1 connections, plain'), ('-h1-tls', 'HTTP/1.1 connections, TLS'), ('-h2-tls', 'h2 connections, TLS')): A('S8idle' + x, 'S8 idle ' + ti, I, 'kib_conn', high=False)
    A('S9', 'S9 WSGI, 200 B, 16 conns, 1 process × 5 threads', RQ, 'us_op', high=False, ref='nginx-uwsgi_pass')
    A('S10', 'S10 cold start, idle memory, binary size', [('cold ms', 'cold_ms', 1), ('RSS KiB', 'rss_kib', 0), ('PSS KiB', 'pss_kib', 0), ('procs', 'procs', 0), ('binary KiB', 'bin_kib', 0)], 'cold_ms', high=False)
    A('S10reload', 'S10 20 reloads in a 10 s wrk run (32 conns)', [('requests', 'ops', 0), ('failed', 'failed', 0), ('p50 µs', 'p50_us', 0), ('p99 µs', 'p99_us', 0), ('p99 no reload', 'control_p99_us', 0), ('req/s', 'ops_s', 0), ('req/s no reload', 'control_ops_s', 0), ('quiet reload ms', 'reload_ms', 1), ('peak RSS KiB', 'rss_peak', 0)], 'p99_us', high=False)
    for n in (1, 100, 1000, 10000): A(f'S11-{n}', f'S11 {n} routes, request hits the last', RQ[:1] + RQ[2:5] + [('start ms', 'start_ms', 0), ('RSS KiB', 'rss_kib', 0)], 'us_op', high=False)
    for n in (1, 1000, 5000): A(f'S12-{n}', f'S12 {n} certificates', [('start ms', 'start_ms', 0), ('RSS KiB', 'rss_kib', 0), ('PSS KiB', 'pss_kib', 0), ('reload ms', 'reload_ms', 0), ('RSS during/after reload', 'peak_kib', 0)], 'reload_ms', high=False)
    r = anchors(s) + '\n' + '\n'.join(x for x in t if x); print(r); return r

def anchors(s):
    """best peer per scenario (tuned variants fold into their base peer) and ratio to nginx of the same run"""
    rows = [('S1 h1 keep-alive', 'S1', 'us_op', 'ops_s'), ('S2 h1 TLS 1.3', 'S2', 'us_op', 'ops_s'), ('S3 h2 TLS', 'S3', 'us_op', 'ops_s'), ('S4 full handshake+GET', 'S4-full', 'us_op', 'ops_s'), ('S4 resumed+GET', 'S4-resume', 'us_op', 'ops_s'), ('S4 new TCP+GET', 'S4-plain', 'us_op', 'ops_s'),
            ('S5 64 MiB proxied', 'S5', 's_gb', 'mb_s'), ('S5 64 MiB proxied TLS', 'S5-tls', 's_gb', 'mb_s'), ('S6 X-Sendfile 1 MiB', 'S6-1m', 's_gb', 'mb_s'), ('S6 X-Sendfile 64 MiB', 'S6-64m', 's_gb', 'mb_s'), ('S6 1 MiB TLS', 'S6-1m-tls', 's_gb', 'mb_s'), ('S6 64 MiB TLS', 'S6-64m-tls', 's_gb', 'mb_s'),
            ('S7 upload 16 MiB', 'S7', 's_gb', 'mb_s'), ('S7 upload TLS', 'S7-tls', 's_gb', 'mb_s'), ('S8 ws echo', 'S8', 'us_op', 'ops_s'), ('S8 wss echo', 'S8-tls', 'us_op', 'ops_s'), ('S8 idle ws', 'S8idle', 'kib_conn', None), ('S8 idle wss', 'S8idle-tls', 'kib_conn', None), ('S8 idle h1', 'S8idle-h1', 'kib_conn', None), ('S8 idle h1 TLS', 'S8idle-h1-tls', 'kib_conn', None), ('S8 idle h2', 'S8idle-h2-tls', 'kib_conn', None),
            ('S9 WSGI', 'S9', 'us_op', 'ops_s'), ('S10 cold start ms', 'S10', 'cold_ms', None), ('S10 idle PSS KiB', 'S10', 'pss_kib', None), ('S10 idle RSS KiB', 'S10', 'rss_kib', None), ('S10 failed in 20 reloads', 'S10reload', 'failed', None), ('S10 p99 µs under reload', 'S10reload', 'p99_us', None), ('S10 quiet reload ms', 'S10reload', 'reload_ms', None),
            ('S11 1 route', 'S11-1', 'us_op', 'ops_s'), ('S11 100 routes', 'S11-100', 'us_op', 'ops_s'), ('S11 1,000 routes', 'S11-1000', 'us_op', 'ops_s'), ('S11 10,000 routes', 'S11-10000', 'us_op', 'ops_s'), ('S12 1,000 certs RSS KiB', 'S12-1000', 'rss_kib', None), ('S12 1,000 certs reload ms', 'S12-1000', 'reload_ms', None), ('S12 5,000 certs RSS KiB', 'S12-5000', 'rss_kib', None), ('S12 5,000 certs reload ms', 'S12-5000', 'reload_ms', None)]
    o = ['| scenario | cost metric | nginx | best peer | ratio best/nginx | paired per round (min–max, n) | throughput nginx → that peer | vestibule | vestibule/nginx, paired per round |', '|---|---|---|---|---|---|---|---|---|']
    def pr(scn, b, k):
        x = paired(scn, b, k, 'nginx' if scn != 'S9' else 'nginx-uwsgi_pass')
        return f'{x[0]:.2f} ({x[1]:.2f}–{x[2]:.2f}, n={x[3]})' if x else '–'
    for ti, scn, k, t in rows:
        d = {p: v for p, v in s.get(scn, {}).items() if '+' not in p and 'direct' not in p and v.get(k) is not None}
        if not d: continue
        ref = d.get('nginx') or d.get('nginx-uwsgi_pass')
        if not ref: continue
        v = next((p for p in ('vestibule', 'vestibule-uwsgi') if p in d), None); b = min(d, key=lambda p: d[p][k]); x = 1 if k in ('us_op', 'kib_conn', 'cold_ms', 'reload_ms') else 3 if k == 's_gb' else 0
        unit = {'us_op': 'CPU µs/op', 's_gb': 'CPU s/GB', 'kib_conn': 'KiB/conn RSS', 'cold_ms': 'ms', 'reload_ms': 'ms', 'pss_kib': 'KiB', 'rss_kib': 'KiB', 'failed': 'requests', 'p99_us': 'µs'}[k]
        o.append(f"| {ti} | {unit} | {F(ref[k], x)} | {b} {F(d[b][k], x)} | {d[b][k]/ref[k] if ref[k] else 0:.2f} | {pr(scn, b, k)} | " + (f"{F(ref[t])} → {F(d[b][t])} {'MB/s' if t == 'mb_s' else '/s'}" if t else '–') + f" | {F(d[v][k], x) if v else '–'} | {pr(scn, v, k) if v else '–'} |")
    return '\n'.join(o)
if __name__ == '__main__': main(sys.argv[1])
