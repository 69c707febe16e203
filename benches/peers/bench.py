#!/usr/bin/env python3
"""Gateway bench harness.  Runs inside its own network namespace (loopback only), gateway on CPU 0, load + backend on CPU 1.
usage: bench.py run [--only S1,S2,..] [--peer a,b] [--rounds 3] [--dur 3] [--out raw.jsonl]
       bench.py check [--peer a,b]        (functional check of every peer/feature, no timing)
       bench.py report [--out raw.jsonl] [--markdown benches/RESULTS.md]
Without --only: every scenario of SCENARIOS. Without --peer: each scenario with the peers that are named there.
Everything it makes (configurations, files, certificates, results) goes to target/bench, or BENCH_WORK."""
import argparse, contextlib, fcntl, json, os, random, re, resource, select, shutil, signal, statistics, subprocess, sys, time
import yaml
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WORK = os.path.abspath(os.environ.get('BENCH_WORK', ROOT + '/target/bench'))
TOOL = ROOT + '/target/bench/tool/release/benchtool'
VESTIBULE = os.path.abspath(os.environ.get('VESTIBULE', ROOT + '/target/release/vestibule'))
RUN, FILES, CERTS = WORK + '/run', WORK + '/files', WORK + '/certs'
PCPU, LCPU = '0', '1'
BE, BE2 = '127.0.0.1:9000', '127.0.0.1:9002'
# Every scenario, and the peers it is measured with by default: the best ones of a run with all of them, nginx and HAProxy.
SCENARIOS = {
    'S1': 'nginx haproxy vestibule', 'S2': 'nginx haproxy vestibule', 'S3': 'nginx haproxy h2o vestibule',
    'P99': 'nginx haproxy vestibule', 'S4': 'nginx haproxy h2o vestibule',
    'S5': 'nginx nginx-tuned haproxy haproxy-tuned haproxy-nosplice vestibule', 'S6': 'nginx nginx-push h2o vestibule',
    'S7': 'nginx vestibule', 'S7pass': 'nginx haproxy haproxy-tuned vestibule', 'S8': 'nginx haproxy vestibule',
    'S9': 'nginx-uwsgi_pass vestibule-uwsgi', 'S8idle': 'nginx haproxy h2o vestibule', 'S10': 'nginx haproxy lighttpd vestibule',
    'S10reload': 'nginx haproxy lighttpd vestibule', 'S11': 'nginx haproxy vestibule', 'S12': 'nginx haproxy vestibule',
    'Cores': 'vestibule', 'S0': ''}
TCK = os.sysconf('SC_CLK_TCK')
T_START = time.time()
HOLD_MAX = float(os.environ.get('BENCH_HOLD', '25'))

def log(*a): print(f'[{time.time()-T_START:6.1f}]', *a, file=sys.stderr, flush=True)

# ---------- one run at a time measures on a machine
class Lock:
    """/tmp/bench.lock, given to another run every 8 s or so; whoever has waited for longer keeps it for as long (HOLD_MAX at most)"""
    def __init__(s): s.f = open('/tmp/bench.lock', 'a'); s.t = None; s.limit = 8.0; s.waited = 0.0
    def get(s):
        if s.t is None:
            t = time.time(); fcntl.flock(s.f, fcntl.LOCK_EX); s.t = time.time(); w = s.t - t; s.waited += w; s.limit = min(HOLD_MAX, max(8.0, w))
            if w > 5: log(f'(waited {w:.0f} s for the cpu lock)')
    def free(s):
        if s.t is not None: fcntl.flock(s.f, fcntl.LOCK_UN); s.t = None
    def breathe(s):
        if s.t is not None and time.time() - s.t > s.limit: s.free(); time.sleep(0.15)
        s.get()
LOCK = Lock()

# ---------- process accounting
def proc_table():
    t = {}
    for d in os.listdir('/proc'):
        if d.isdigit():
            try:
                s = open(f'/proc/{d}/stat').read(); r = s[s.rindex(')') + 2:].split()
                t[int(d)] = (int(r[1]), int(r[3]), int(r[11]) + int(r[12]), int(r[13]) + int(r[14]), r[0])
            except (OSError, ValueError): pass
    return t
def tree(root, t=None):
    t = t or proc_table(); out = {root} if root in t else set(); grew = True
    while grew:
        grew = False
        for p, v in t.items():
            if p not in out and (v[0] in out or v[1] == root): out.add(p); grew = True
    return out
def cpu_ticks(root, exclude=()):
    """user+sys ticks of the live tree plus the reaped children of its members"""
    t = proc_table(); return sum(t[p][2] + t[p][3] for p in tree(root, t) if p not in exclude)
def mem_kib(root):
    rss = pss = 0
    for p in tree(root):
        try:
            d = dict(re.findall(r'^(Rss|Pss):\s+(\d+) kB', open(f'/proc/{p}/smaps_rollup').read(), re.M))
            rss += int(d.get('Rss', 0)); pss += int(d.get('Pss', 0))
        except OSError: pass
    return rss, pss
def cpustat():
    o = {}
    for l in open('/proc/stat'):
        if re.match(r'cpu\d', l):
            f = l.split(); v = list(map(int, f[1:9])); o[f[0]] = (sum(v) - v[3] - v[4], sum(v))
    return o

class Measure:
    """with Measure(peer) as m: ... ; m.out has cpu_s, cpu0/cpu1 busy fractions"""
    def __init__(s, root, exclude=()): s.root, s.ex = root, exclude
    def __enter__(s):
        s.c, s.p, s.t = cpustat(), cpu_ticks(s.root, s.ex), time.time(); return s
    def __exit__(s, *a):
        t, c, p = time.time(), cpustat(), cpu_ticks(s.root, s.ex)
        s.out = {'cpu_s': (p - s.p) / TCK, 'wall': t - s.t}
        for k in ('cpu0', 'cpu1'):
            s.out[k] = round((c[k][0] - s.c[k][0]) / max(1, c[k][1] - s.c[k][1]), 3)
        s.out['cpu0_s'] = (c['cpu0'][0] - s.c['cpu0'][0]) / TCK

def sh(cmd, cpu=LCPU, timeout=60, inp=None):
    r = subprocess.run(['taskset', '-c', cpu] + cmd, capture_output=True, text=True, timeout=timeout, input=inp)
    return r.stdout + ('\n[stderr] ' + r.stderr if r.stderr.strip() else '')
def tool(*a, timeout=60):
    o = sh([TOOL] + [str(x) for x in a], timeout=timeout)
    for l in reversed(o.splitlines()):
        if l.startswith('{'):
            d = json.loads(l)
            if '[stderr]' in o: d['stderr'] = o.split('[stderr] ', 1)[1][:300]
            return d
    return {'error': o[:400]}

# ---------- fixtures
def fixtures():
    os.makedirs(FILES, exist_ok=True); os.makedirs(CERTS, exist_ok=True)
    for n, s in (('1m.bin', 1 << 20), ('64m.bin', 64 << 20), ('4k.bin', 4096)):
        p = f'{FILES}/{n}'
        if not os.path.exists(p) or os.path.getsize(p) != s: open(p, 'wb').write(os.urandom(s))
        open(p, 'rb').read()
    # Text as of a page: it compresses about six to one.
    words = 'the interview asks a question and shows a field with a label that its author wrote for it once more'.split()
    if not os.path.exists(FILES + '/text.txt'):
        rng = random.Random(7); text = ' '.join(rng.choice(words) + (f' {rng.random()}' if rng.random() < 0.05 else '') for _ in range(14000)); open(FILES + '/text.txt', 'w').write(text[:65536])
    if not os.path.exists(CERTS + '/main.crt'): gen_certs([('main', ['bench.test', 'localhost', '127.0.0.1'])])
def gen_certs(items):
    code = '''
import sys, json, datetime, ipaddress
from cryptography import x509
from cryptography.x509.oid import NameOID
from cryptography.hazmat.primitives import hashes, serialization as S
from cryptography.hazmat.primitives.asymmetric import ec
d = sys.argv[1]
for name, sans in json.load(sys.stdin):
    k = ec.generate_private_key(ec.SECP256R1()); n = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, sans[0])])
    g = [x509.IPAddress(ipaddress.ip_address(s)) if s[0].isdigit() else x509.DNSName(s) for s in sans]
    c = x509.CertificateBuilder().subject_name(n).issuer_name(n).public_key(k.public_key()).serial_number(x509.random_serial_number()).not_valid_before(datetime.datetime(2025,1,1)).not_valid_after(datetime.datetime(2036,1,1)).add_extension(x509.SubjectAlternativeName(g), False).add_extension(x509.BasicConstraints(False, None), True).sign(k, hashes.SHA256())
    cp = c.public_bytes(S.Encoding.PEM); kp = k.private_bytes(S.Encoding.PEM, S.PrivateFormat.PKCS8, S.NoEncryption())
    open(f'{d}/{name}.crt','wb').write(cp); open(f'{d}/{name}.key','wb').write(kp); open(f'{d}/{name}.pem','wb').write(cp+kp)
'''
    subprocess.run([sys.executable, '-c', code, CERTS], input=json.dumps(items), text=True, check=True)
def many_certs(n):
    need = [(f'h{i}', [f'host{i}.bench.test']) for i in range(n) if not os.path.exists(f'{CERTS}/h{i}.pem')]
    if need: gen_certs(need)

# ---------- peers
class Peer:
    def __init__(s, d, allp):
        s.d = dict(d)
        if 'like' in d:
            base = dict(allp[d['like']]); base.update(d); s.d = base
        s.name, s.alias = d['name'], d.get('same_as'); s.proc = None; s.aux = []
        s.features = s.d.get('features', []); s.paths = s.d.get('paths', {}); s.http, s.https = s.d.get('http'), s.d.get('https')
        s.run = f'{RUN}/{s.name}'; s.gen = 0
    def vars(s, routes=0, certs=0, extra=None):
        v = {'RUN': s.run, 'HTTP': s.http, 'HTTPS': s.https, 'BE': BE, 'BE2': BE2, 'CERT': CERTS + '/main.crt', 'KEY': CERTS + '/main.key', 'PEM': CERTS + '/main.pem', 'FILES': FILES, 'HERE': HERE, 'VESTIBULE': VESTIBULE, 'UWSGI': RUN + '/uwsgi', 'GENLINE': '', 'PID': s.proc.pid if s.proc else 0}
        v.update(s.d.get('vars', {})); v.update(extra or {}); return v
    @staticmethod
    def subst(t, v):
        for _ in range(3): t = re.sub(r'@([A-Z][A-Z0-9]*)@', lambda m: str(v[m[1]]) if m[1] in v else m[0], t)
        return t
    def render(s, routes=0, certs=0, extra=None, gen=None):
        os.makedirs(s.run, exist_ok=True); v = s.vars(extra=extra)
        if gen is not None: v['GENLINE'] = s.d.get('gen', '').replace('@G@', str(gen))
        v['G'] = gen if gen is not None else 0
        v['ROUTES'] = '\n'.join(s.d.get('route', '').replace('@I@', str(i)) for i in range(routes))
        v['CERTS'] = '\n'.join(s.d.get('cert', '').replace('@I@', str(i)).replace('@CI@', f'{CERTS}/h{i}') for i in range(certs))
        for out, src in s.d['files'].items():
            t = open(f'{HERE}/{src}').read(); os.makedirs(os.path.dirname(f'{s.run}/{out}'), exist_ok=True)
            t = '\n'.join((l[len('@IFROUTES '):] if l.startswith('@IFROUTES ') else l) for l in t.split('\n') if routes or not l.startswith('@IFROUTES '))
            # Whole or not at all, as an editor saves it: some watch their files.
            with open(f'{s.run}/{out}.new', 'w') as f: f.write(s.subst(t, v))
            os.replace(f'{s.run}/{out}.new', f'{s.run}/{out}')
    def spawn(s, extra=None, cpu=None):
        v = s.vars(extra=extra); env = dict(os.environ); env.update({k: s.subst(str(x), v) for k, x in s.d.get('env', {}).items()})
        s.proc = subprocess.Popen(['taskset', '-c', cpu or s.d.get('cpu', PCPU)] + [s.subst(a, v) for a in s.d['start']], stdout=open(s.run + '/out.log', 'a'), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
    def wait(s, timeout=60, tls=0, path='/', want='', host='bench.test'):
        a = ['probe', '--addr', f'127.0.0.1:{s.https if tls else s.http}', '--timeout', timeout, '--path', path, '--tls', tls, '--host', host]
        if want: a += ['--want', want]
        return tool(*a, timeout=timeout + 20)
    def wait_gen(s, g, timeout):
        '''until the configuration with this mark answers: a header that it sets, or a route that only it has'''
        return s.wait(timeout=timeout, path=s.d.get('gen_path', '/').replace('@G@', str(g)), want=f'x-gen: {g}')
    def start(s, routes=0, certs=0, extra=None, gen=None, wait=True, clean=True, cpu=None):
        if clean: shutil.rmtree(s.run, ignore_errors=True)
        s.render(routes, certs, extra, gen); s.spawn(extra, cpu)
        if wait:
            r = s.wait(timeout=60 if routes or certs else 10)
            if not r.get('ok'):
                said = open(s.run + '/out.log').read()[-600:]; s.stop(); raise RuntimeError(f'{s.name} does not answer: {said}')
        for a in s.d.get('after', []):     # e.g. re-pin daemon processes
            subprocess.run(['bash', '-c', s.subst(a, s.vars())])
        return s
    def stop(s):
        if not s.proc: return
        pids = tree(s.proc.pid)
        with contextlib.suppress(ProcessLookupError): s.proc.send_signal(signal.SIGTERM)
        try: s.proc.wait(3)
        except subprocess.TimeoutExpired: pass
        for p in pids:
            with contextlib.suppress(ProcessLookupError): os.kill(p, signal.SIGKILL)
        with contextlib.suppress(Exception): s.proc.wait(2)
        s.proc = None
    def empty_logs(s):
        '''before each measurement, so that a long run does not fill the disk; all of them append'''
        for d, _, fs in os.walk(s.run):
            for f in fs:
                if f.endswith('.log'):
                    with contextlib.suppress(OSError): os.truncate(f'{d}/{f}', 0)
    @property
    def pid(s): return s.proc.pid
    def reload(s, wait=False):
        r = subprocess.Popen(['taskset', '-c', PCPU] + [s.subst(a, s.vars()) for a in s.d['reload']], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **{k: s.subst(str(x), s.vars()) for k, x in s.d.get('env', {}).items()}})
        if wait: r.wait(60)
        return r

def load_peers(path, names=None, by_family=False):
    """the peers of a file; by_family: `nginx` stands for nginx-uwsgi_pass and all others that begin so"""
    l = yaml.safe_load(open(path)); allp = {d['name']: d for d in l}; ps = [Peer(d, allp) for d in l]
    if names: ps = [p for p in ps if p.name in names or by_family and p.name.split('-')[0] in names]
    return ps
def installed(p): return shutil.which(p.subst(p.d['start'][0], p.vars())) is not None

class Backends:
    def __enter__(s):
        r = RUN + '/backend'; shutil.rmtree(r, ignore_errors=True); os.makedirs(r)
        t = Peer.subst(open(HERE + '/peers/backend-nginx.conf').read(), {'RUN': r, 'BE': BE, 'FILES': FILES}); open(r + '/nginx.conf', 'w').write(t)
        s.p = [subprocess.Popen(['taskset', '-c', LCPU, '/usr/sbin/nginx', '-c', r + '/nginx.conf', '-e', r + '/error.log'], start_new_session=True),
               subprocess.Popen(['taskset', '-c', LCPU, TOOL, 'backend', '--listen', BE2], start_new_session=True)]
        for a in (BE, BE2):
            assert tool('probe', '--addr', a).get('ok'), 'backend ' + a
        return s
    def __exit__(s, *a):
        for p in s.p: p.terminate()
        for p in s.p: p.wait(5)

# ---------- load generators
def lat(v):
    m = re.match(r'([\d.]+)(us|ms|s)', v); return float(m[1]) * {'us': 1, 'ms': 1e3, 's': 1e6}[m[2]] if m else None
def wrk(url, dur, conns=64, host='bench.test', extra=(), cpu=LCPU):
    o = sh(['wrk', '-t1', f'-c{conns}', f'-d{dur}s', '--latency', '-H', f'Host: {host}', *extra, url], cpu, timeout=dur + 30)
    r = {'ops': int(m[1]) if (m := re.search(r'(\d+) requests in', o)) else 0, 'ops_s': float(m[1]) if (m := re.search(r'Requests/sec:\s+([\d.]+)', o)) else 0}
    for q in ('50', '99'):
        if m := re.search(rf'^\s+{q}%\s+(\S+)', o, re.M): r[f'p{q}_us'] = lat(m[1])
    if m := re.search(r'Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)', o): r['sockerr'] = dict(zip(('connect', 'read', 'write', 'timeout'), map(int, m.groups())))
    if m := re.search(r'Non-2xx or 3xx responses: (\d+)', o): r['non2xx'] = int(m[1])
    if not r['ops']: r['error'] = o[:300]
    return r
def h2load(url, dur, c=16, m=32):
    o = sh(['h2load', '-t1', f'-c{c}', f'-m{m}', f'-D{dur}', url], timeout=dur + 30)
    r = {}
    if x := re.search(r'finished in [\d.]+\w+, ([\d.]+) req/s', o): r['ops_s'] = float(x[1])
    if x := re.search(r'requests: (\d+) total.*?(\d+) succeeded, (\d+) failed', o): r['ops'] = int(x[2]); r['failed'] = int(x[3])
    if x := re.search(r'status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx', o): r['non2xx'] = sum(map(int, x.groups()[1:]))
    if x := re.search(r'time for request:\s+(\S+)\s+(\S+)\s+(\S+)', o): r['mean_us'] = lat(x[3]); r['max_us'] = lat(x[2])
    if x := re.search(r'Application protocol: (\S+)', o): r['proto'] = x[1]
    if not r.get('ops'): r['error'] = o[-400:]
    return r

# ---------- recording
OUT = None
def rec(scn, peer, rnd, r, m=None):
    d = {'scn': scn, 'peer': peer, 'round': rnd, **r}
    if m:
        d.update(m.out)
        if d.get('ops'): d['us_op'] = round(m.out['cpu_s'] * 1e6 / d['ops'], 2)
        if d.get('bytes'): d['s_gb'] = round(m.out['cpu_s'] / (d['bytes'] / 1e9), 4)
    OUT.write(json.dumps(d) + '\n'); OUT.flush()
    log(scn, peer, {k: d.get(k) for k in ('ops_s', 'mb_s', 'us_op', 's_gb', 'p99_us', 'cpu0', 'cpu1', 'errors', 'error', 'non2xx', 'sockerr', 'stderr') if d.get(k) is not None})
    return d
def pid_of(p, ps):
    return next(x for x in ps if x.name == p.alias).pid if p.alias else p.pid
def port(p, ps, tls=False):
    q = next(x for x in ps if x.name == p.alias) if p.alias else p
    return q.https if tls else q.http

def interleave(scn, ps, feat, fn, rounds, among=None):
    """fn(peer) -> result dict; measured, interleaved, rotated order"""
    sel = [p for p in ps if feat in p.features and (among is None or p.name in among)]
    for r in range(rounds):
        k = r % max(1, len(sel))
        for p in sel[k:] + sel[:k]:
            LOCK.breathe()
            try:
                if not p.alias:
                    if p.proc.poll() is not None: log('!!', p.name, 'has ended, with', p.proc.returncode); p.start(extra=p.d.get('ws_vars') if feat == 'ws' else None)
                    p.empty_logs()
                with Measure(pid_of(p, ps)) as m: res = fn(p)
                if isinstance(res, tuple): res, m = res      # fn measured a narrower window itself
                rec(scn, p.name, r, res, m)
            except Exception as e: rec(scn, p.name, r, {'error': repr(e)[:300]})

STEADY = ('S0', 'S1', 'S2', 'S3', 'P99', 'S4', 'S5', 'S6', 'S7', 'S7pass', 'S8')
def run(a):
    global OUT
    os.makedirs(os.path.dirname(a.out), exist_ok=True); OUT = open(a.out, 'a'); fixtures(); D, R = a.dur, a.rounds
    only = a.only.split(',') if a.only else [k for k in SCENARIOS if k != 'S0']
    if unknown := [k for k in only if k not in SCENARIOS]: sys.exit(f'no such scenario: {", ".join(unknown)}; there are {", ".join(SCENARIOS)}')
    among = {k: a.peer.split(',') if a.peer else SCENARIOS[k].split() for k in only}
    want = {n for k in only for n in among[k]}
    every = load_peers(a.peers); known = [p.name for p in every + load_peers(HERE + '/peers-wsgi.yaml')]
    if a.peer and (unknown := [n for n in a.peer.split(',') if n not in known and not any(k.startswith(n + '-') for k in known)]): sys.exit(f'no such peer: {", ".join(unknown)}; there are {", ".join(known)}')
    want |= {p.alias for p in every if p.name in want and p.alias}; ps = [p for p in every if p.name in want]
    if missing := [p.name for p in ps if not p.alias and not installed(p)]: [rec('left out', n, 0, {'error': 'not installed'}) for n in missing]; ps = [p for p in ps if (p.alias or p.name) not in missing]
    rec('meta', 'meta', 0, {**machine(ps), 'only': only, 'rounds': R, 'dur': D, 'default_peers': not a.peer})
    A = lambda p, tls=False: f'127.0.0.1:{port(p, ps, tls)}'
    sel = lambda k, feat: [p for p in ps if p.name in among[k] and feat in p.features]
    with Backends() as B:
        def steady(ps):
            def each(scn, feat, fn, of=None): interleave(scn, ps, feat, fn, R, among[of or scn])
            def s0():
                for r in range(R):
                    LOCK.breathe()
                    with Measure(B.p[0].pid) as m: res = wrk(f'http://{BE}/', D)
                    rec('S0-floor', 'backend-direct', r, res, m)
                    with Measure(B.p[0].pid) as m: res = tool('down', '--addr', BE, '--path', '/d/64m.bin', '--secs', D, '--threads', 4)
                    rec('S0-down-floor', 'backend-direct', r, res, m)
                    with Measure(B.p[1].pid) as m: res = tool('up', '--addr', BE2, '--path', '/upload', '--secs', D, '--threads', 4)
                    rec('S0-up-floor', 'backend-direct', r, res, m)
                    with Measure(B.p[1].pid) as m: res = ws_run(BE2, D)
                    rec('S0-ws-floor', 'backend-direct', r, res, m); LOCK.free()
            def p99():
                # What each can take, then 70 % of what the slowest can: the same arrivals for all of them.
                few = [p for p in ps if p.name in among['P99'] and 'h1' in p.features]
                can = {p.name: max(wrk(f'http://{A(p)}/', 1).get('ops_s', 0) for _ in range(2)) for p in few}; rate = int(0.7 * min(can.values()))
                log('P99: ', can, 'offered', rate)
                each('P99', 'h1', lambda p: {**tool('rate', '--addr', A(p), '--rate', rate, '--secs', D), 'rate': rate})
            def s4():
                for mode, tls in (('full', 1), ('resume', 1), ('plain', 0)): each('S4-' + mode, 'hs', lambda p: tool('hs', '--addr', A(p, tls), '--secs', D, '--threads', 16, '--mode', mode), 'S4')
            def s5():
                for tls in (0, 1): each('S5-tls' if tls else 'S5', 'down', lambda p: tool('down', '--addr', A(p, tls), '--path', p.paths.get('down', '/d/64m.bin'), '--secs', D, '--threads', 4, '--tls', tls), 'S5')
            def s6():
                for tls, sz in ((0, '64m'), (0, '1m'), (1, '64m'), (1, '1m')): each(f'S6-{sz}' + ('-tls' if tls else ''), 'xs', lambda p: tool('down', '--addr', A(p, tls), '--path', f'{p.paths.get("xs", "/xs")}/{sz}.bin', '--secs', D, '--threads', 4, '--tls', tls), 'S6')
            def s7(scn, feat, path): each(scn, feat, lambda p: tool('up', '--addr', A(p), '--path', p.paths.get(feat, path), '--secs', D, '--threads', 4))
            def s8():
                for p in ps:
                    if 'ws' in p.features and 'ws_vars' in p.d: p.stop(); p.start(extra=p.d['ws_vars'])
                for tls in (0, 1): each('S8-tls' if tls else 'S8', 'ws', lambda p: ws_run(A(p, tls), D, tls, root=pid_of(p, ps)), 'S8')
            fns = {'S0': s0, 'S1': lambda: each('S1', 'h1', lambda p: wrk(f'http://{A(p)}/', D)), 'S2': lambda: each('S2', 'tls', lambda p: wrk(f'https://{A(p,1)}/', D)),
                   'S3': lambda: each('S3', 'h2', lambda p: h2load(f'https://{A(p,1)}/', D)), 'P99': p99, 'S4': s4, 'S5': s5, 'S6': s6,
                   'S7': lambda: s7('S7', 'up', '/upload'), 'S7pass': lambda: s7('S7pass', 'pass', '/upload-nb'), 'S8': s8}
            for k in only:
                if k in fns: attempt(k, fns[k])
        try:
            if set(STEADY) & set(only):
                up = []
                for p in ps:
                    if p.alias: continue
                    if not any(x.name in among[k] for k in only if k in STEADY for x in ps if x is p or x.alias == p.name): continue
                    try: p.start(); up.append(p)
                    except Exception as e: log('left out:', e); rec('left out', p.name, 0, {'error': str(e)[:300]})
                here = {p.name for p in up}; here = [p for p in ps if (p.alias or p.name) in here]
                for p in up: wrk(f'http://{A(p)}/', 1, 16)
                steady(here)
        finally:
            LOCK.free()
            for p in ps: p.stop()
        for k, fn in (('S9', lambda: s9(among['S9'], a)), ('S8idle', lambda: s8idle(sel('S8idle', 'idle'), a)), ('S10', lambda: s10(sel('S10', 'h1'))),
                      ('S10reload', lambda: s10reload(sel('S10reload', 'reload'), a)), ('S11', lambda: s11(sel('S11', 'routes'), a)),
                      ('S12', lambda: s12(sel('S12', 'certs'), a)), ('Cores', lambda: cores(sel('Cores', 'cores'), a, [x.pid for x in B.p]))):
            if k in only: attempt(k, fn)
    LOCK.free(); rec('end', 'meta', 0, {'seconds': round(time.time() - T_START)})
    log('done in', round(time.time() - T_START), 's')
def attempt(scn, fn):
    """a scenario that fails is named, and does not end the run"""
    t = time.time()
    try: fn()
    except Exception as e: log('!!', scn, repr(e)); rec('left out', scn, 0, {'error': repr(e)[:300]})
    log('==', scn, f'took {time.time()-t:.0f} s')

def machine(ps):
    """what was measured, and on what"""
    one = lambda *c: (subprocess.run(c, capture_output=True, text=True, cwd=ROOT).stdout or '').strip()
    cpu = next((l.split(':', 1)[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '?')
    mem = int(re.search(r'MemTotal:\s+(\d+)', open('/proc/meminfo').read())[1]) // 1048576 + 1
    packages = one('dpkg-query', '-W', '-f', '${Package} ${Version}\n', 'nginx*', 'haproxy', 'apache2', 'caddy', 'h2o', 'lighttpd', 'wrk', 'nghttp2-client', 'uwsgi-core', 'libssl3').splitlines()
    packages = [p for p in packages if len(p.split()) == 2 and p.split()[0] in ('nginx', 'nginx-light', 'haproxy', 'apache2', 'caddy', 'h2o', 'lighttpd', 'wrk', 'nghttp2-client', 'uwsgi-core', 'libssl3')]
    # The kernel's and the distribution's names say what a reader needs; a host's name does not.
    release = dict(l.strip().split('=', 1) for l in open('/etc/os-release') if '=' in l).get('PRETTY_NAME', '?').strip('"')
    return {'date': time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime()), 'cpu': cpu, 'cores': os.cpu_count(), 'memory_gib': mem, 'kernel': os.uname().release, 'system': release,
            'commit': one('git', 'describe', '--always', '--dirty', '--abbrev=12'), 'vestibule': one(VESTIBULE, '--version'), 'packages': packages}

def ws_run(addr, dur, tls=0, conns=200, root=None):
    """opens connections, then counts; with root, returns (result, Measure over the message phase only)"""
    q = subprocess.Popen(['taskset', '-c', LCPU, TOOL, 'ws', '--addr', addr, '--path', '/ws', '--secs', str(dur), '--conns', str(conns), '--tls', str(tls)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if not select.select([q.stdout], [], [], 30)[0]: raise TimeoutError(f'{conns} websockets not open after 30 s')
        ready = json.loads(q.stdout.readline())
        with Measure(root or os.getpid()) as m: o, e = q.communicate('\n', timeout=dur + 30)
    finally:
        if q.poll() is None: q.kill()
    r = json.loads(o.strip().splitlines()[-1]); r['conns'] = ready['ready']
    if e.strip(): r['stderr'] = e[:200]
    return (r, m) if root else r

# What idles: a websocket, a connection after one request; over TLS or plain (h2 is spoken over TLS alone)
IDLE = (('ws', 0), ('ws', 1), ('h1', 0), ('h1', 1), ('h2', 1))
def s8idle(ps, a):
    for kind, tls in IDLE:
        for r in range(a.idle_rounds):
            for p in ps:
                if kind != 'ws' or 'ws' in p.features: idle_run(p, kind, tls, r, a.idle)
def idle_name(kind, tls): return 'S8idle' + {'ws': '', 'h1': '-h1', 'h2': '-h2'}[kind] + ('-tls' if tls else '')
def idle_run(p, kind, tls, r, n):
    """memory of n connections that have had one exchange each and are idle, from the growth of the gateway's processes"""
    LOCK.breathe(); scn = idle_name(kind, tls); q = None
    try:
        p.start(extra=p.d.get('idle_vars') if kind == 'ws' else None); wrk(f'http://127.0.0.1:{p.http}/', 1, 16); time.sleep(0.5)
        rss0, pss0 = mem_kib(p.pid)
        q = subprocess.Popen(['taskset', '-c', LCPU, TOOL, 'idle', '--kind', kind, '--addr', f'127.0.0.1:{p.https if tls else p.http}', '--conns', str(n), '--tls', str(tls)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if not select.select([q.stdout], [], [], 45)[0]: raise TimeoutError(f'{n} connections not open after 45 s (peer or fd limit?)')
        ready = json.loads(q.stdout.readline()); time.sleep(1.0)
        rss1, pss1 = mem_kib(p.pid); nproc = len(tree(p.pid)); o, e = q.communicate('\n', timeout=60); alive = json.loads(o.strip().splitlines()[-1]).get('alive')
        k = max(1, ready['ready'])
        rec(scn, p.name, r, {'conns': ready['ready'], 'alive': alive, 'open_errors': ready['errors'], 'open_s': ready['elapsed'], 'rss0_kib': rss0, 'rss1_kib': rss1, 'pss0_kib': pss0, 'pss1_kib': pss1, 'procs': nproc, 'kib_conn': round((rss1 - rss0) / k, 2), 'kib_conn_pss': round((pss1 - pss0) / k, 2), 'stderr': e[:200] or None})
        log('   ', p.name, scn, f'{(rss1-rss0)/k:.1f} KiB/conn (rss) {(pss1-pss0)/k:.1f} (pss) n={ready["ready"]} alive={alive}')
    except Exception as e: rec(scn, p.name, r, {'error': repr(e)[:300]})
    finally:
        if q and q.poll() is None: q.kill()
        p.stop()

def s10(ps):
    for r in range(5):
        for p in ps:
            LOCK.breathe()
            try:
                shutil.rmtree(p.run, ignore_errors=True); p.render(); t = time.time(); p.spawn(); pr = p.wait(timeout=15); ms = (time.time() - t) * 1e3
                tool('down', '--addr', f'127.0.0.1:{p.http}', '--path', '/', '--secs', 0.2, '--threads', 1); time.sleep(0.7)
                rss, pss = mem_kib(p.pid)
                b = p.subst(p.d['bin'], p.vars()); sz = os.path.getsize(os.path.realpath(b))
                rec('S10', p.name, r, {'cold_ms': round(ms, 1), 'ok': pr.get('ok'), 'rss_kib': rss, 'pss_kib': pss, 'procs': len(tree(p.pid)), 'bin_kib': sz // 1024})
                log('    cold', p.name, round(ms, 1), 'ms rss', rss, 'pss', pss)
            except Exception as e: rec('S10', p.name, r, {'error': repr(e)[:200]})
            finally: p.stop()

def s10reload(ps, a):
    for r in range(a.reload_rounds):
        for p in ps:
            LOCK.breathe(); w = None
            try:
                p.start(gen=0)
                # no-reload control (2 s) then 10 s with 20 reloads; each reload writes a config with a new generation number
                with Measure(p.pid) as m0: c = wrk(f'http://127.0.0.1:{p.http}/', 2, 32)
                rss0 = mem_kib(p.pid)[0]
                w = subprocess.Popen(['taskset', '-c', LCPU, 'wrk', '-t1', '-c32', '-d10s', '--latency', '-H', 'Host: bench.test', f'http://127.0.0.1:{p.http}/'], stdout=subprocess.PIPE, text=True)
                t = time.time(); rs = []; peak = 0
                for g in range(1, 21):
                    while time.time() - t < g * 0.46: time.sleep(0.005)
                    p.render(gen=g); rs.append(p.reload()); peak = max(peak, mem_kib(p.pid)[0])
                o, _ = w.communicate(timeout=40)
                for x in rs: x.wait(30)
                m = re.search(r'Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)', o); se = dict(zip(('connect', 'read', 'write', 'timeout'), map(int, m.groups()))) if m else {}
                n2 = int(x[1]) if (x := re.search(r'Non-2xx or 3xx responses: (\d+)', o)) else 0
                ops = int(re.search(r'(\d+) requests in', o)[1]); q = lambda k: lat(re.search(rf'^\s+{k}%\s+(\S+)', o, re.M)[1])
                last = p.wait_gen(20, 5); time.sleep(0.5); rss2, _ = mem_kib(p.pid)
                # quiet reload latency
                ms = []
                for g in range(21, 24):
                    p.render(gen=g); t0 = time.time(); p.reload(); pr = p.wait_gen(g, 10); ms.append((time.time() - t0) * 1e3); time.sleep(0.2)
                rec('S10reload', p.name, r, {'ops': ops, 'failed': sum(se.values()) + n2, 'sockerr': se, 'non2xx': n2, 'p50_us': q(50), 'p99_us': q(99), 'control_p99_us': c.get('p99_us'), 'control_ops_s': c['ops_s'], 'ops_s': ops / 10, 'last_gen_seen': last.get('ok'), 'reload_ms': round(statistics.median(ms), 1), 'rss0': rss0, 'rss_peak': peak, 'rss_after': rss2})
                log('   ', p.name, 'reload_ms', ms, 'failed', se, n2, 'last', last.get('ok'))
            except Exception as e: rec('S10reload', p.name, r, {'error': repr(e)[:300]})
            finally:
                if w and w.poll() is None: w.kill()
                p.stop()

def s9(names, a):
    f = HERE + '/peers-wsgi.yaml'; ps = load_peers(f, names, by_family=True); uw = [Peer(d, {}) for d in yaml.safe_load(open(HERE + '/uwsgi.yaml'))]
    try:
        for u in uw: u.start(wait=False)
        time.sleep(2); up = []
        for p in ps:
            try: p.start(); up.append(p)
            except Exception as e: log('left out:', e); rec('left out', p.name, 0, {'error': str(e)[:300]})
        for r in range(a.rounds):
            for p in up[r % max(1, len(up)):] + up[:r % max(1, len(up))]:
                LOCK.breathe(); p.empty_logs()
                ex = set()
                t = proc_table()
                for q in tree(p.pid, t):
                    with contextlib.suppress(OSError):
                        if p.d.get('exclude') and p.d['exclude'] in open(f'/proc/{q}/cmdline').read(): ex.add(q)
                with Measure(p.pid, ex) as m: res = wrk(f'http://127.0.0.1:{p.http}/', a.dur, 16)
                res['excluded'] = len(ex); rec('S9', p.name, r, res, m)
    finally:
        for p in ps + uw: p.stop()

def s11(ps, a):
    # N is the innermost loop: the figures of one peer are taken back to back, so machine drift does not pose as a scaling effect
    for r in range(a.scale_rounds):
        for p in ps:
            for n in (1, 10000) if r % 2 == 0 else (10000, 1):
                LOCK.breathe()
                try:
                    t = time.time(); p.start(routes=n); ms = (time.time() - t) * 1e3; u = f'http://127.0.0.1:{p.http}/p{n-1}/x'
                    ok = p.wait(timeout=3, path=f'/p{n-1}/x').get('ok'); rss = mem_kib(p.pid)[0]
                    with Measure(p.pid) as m: res = wrk(u, a.dur)
                    res.update({'n': n, 'start_ms': round(ms), 'rss_kib': rss, 'ok': ok}); rec(f'S11-{n}', p.name, r, res, m)
                except Exception as e: rec(f'S11-{n}', p.name, r, {'error': repr(e)[:300], 'n': n})
                finally: p.stop()

def s12(ps, a):
    n = 5000; many_certs(n)
    for r in range(a.cert_rounds):
        for p in ps:
            LOCK.breathe()
            try:
                t = time.time(); p.start(certs=n, gen=0); ms = (time.time() - t) * 1e3; h = f'host{n-1}.bench.test'
                ok = p.wait(timeout=30, tls=1, host=h).get('ok'); time.sleep(0.5); rss, pss = mem_kib(p.pid)
                # One certificate is another one, as after a renewal; the mark tells when it is in force.
                gen_certs([('next', ['host0.bench.test'])])
                for end in ('crt', 'key', 'pem'): os.replace(f'{CERTS}/next.{end}', f'{CERTS}/h0.{end}')
                p.render(certs=n, gen=1); t = time.time(); p.reload(); pr = p.wait_gen(1, 60); rl = (time.time() - t) * 1e3; peak = mem_kib(p.pid)[0]; time.sleep(1.5); rss2, _ = mem_kib(p.pid)
                rec(f'S12-{n}', p.name, r, {'n': n, 'start_ms': round(ms), 'rss_kib': rss, 'pss_kib': pss, 'reload_ms': round(rl), 'reload_ok': pr.get('ok'), 'peak_kib': peak, 'rss_after_kib': rss2, 'ok': ok})
                log('   ', p.name, n, 'start', round(ms), 'rss', rss, 'reload', round(rl), pr.get('ok'), 'sni ok', ok)
            except Exception as e: rec(f'S12-{n}', p.name, r, {'error': repr(e)[:300], 'n': n})
            finally: p.stop()

def cores(ps, a, backends):
    """One thread and two. With two cores the load needs some of them, too, so there are two looks: small requests, by the CPU time of one;
    and answers that are compressed, where the gateway does nearly all the work, by throughput, less what the load took from it."""
    for r in range(a.scale_rounds):
        for p in ps:
            for n in (1, 2) if r % 2 == 0 else (2, 1):
                LOCK.breathe()
                try:
                    p.start(extra={'WORKERS': n}, cpu=PCPU if n == 1 else f'{PCPU},{LCPU}')
                    for scn, url, extra in (('Cores-small', '/', ()), ('Cores-gzip', '/d/text.txt', ('-H', 'Accept-Encoding: gzip'))):
                        p.empty_logs()
                        others = lambda: sum(map(cpu_ticks, backends)) / TCK + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
                        with Measure(p.pid) as m: before = others(); res = wrk(f'http://127.0.0.1:{p.http}{url}', a.dur, 64, extra=extra, cpu=f'{PCPU},{LCPU}' if n == 2 else LCPU); took = others() - before
                        res['others_us_op'] = round(took * 1e6 / max(1, res['ops']), 2)
                        rec(f'{scn}-{n}', p.name, r, res, m)
                except Exception as e: rec(f'Cores-small-{n}', p.name, r, {'error': repr(e)[:300]})
                finally: p.stop()

def check(a):
    fixtures(); ps = load_peers(a.peers, a.peer.split(',') if a.peer else None)
    with Backends():
        for p in ps:
            if p.alias: continue
            if not installed(p): print(p.name, 'is not installed'); continue
            try:
                p.start(gen=0 if 'reload' in p.features else None); A, T = f'127.0.0.1:{p.http}', f'127.0.0.1:{p.https}'; res = {}
                c = lambda *x: subprocess.run(['curl', '-sk', '-m', '10', *x], capture_output=True, text=True, errors='replace').stdout
                res['h1'] = c('-w', ' %{http_code}', f'http://{A}/', '-H', 'Host: bench.test')[-8:]
                if 'tls' in p.features: res['tls'] = c('-o', '/dev/null', '-w', '%{http_code} %{http_version} %{ssl_verify_result}', f'https://{T}/', '--http1.1'); res['tlsver'] = sh(['bash', '-c', f'openssl s_client -connect {T} -servername bench.test </dev/null 2>/dev/null | grep -E "^New|Server Temp|Peer signature"']).replace('\n', ' | ')
                if 'h2' in p.features: res['h2'] = c('-o', '/dev/null', '-w', '%{http_code} %{http_version}', f'https://{T}/', '--http2')
                if 'hs' in p.features: res['hs'] = tool('hs', '--addr', T, '--secs', 1, '--threads', 4, '--mode', 'resume')
                if 'down' in p.features: res['down'] = c('-o', '/dev/null', '-w', '%{http_code} %{size_download}', f'http://{A}/d/64m.bin')
                if 'xs' in p.features: res['xs'] = c('-o', '/dev/null', '-w', '%{http_code} %{size_download}', f'http://{A}/xs/64m.bin', '-H', 'Host: bench.test'); res['xs1'] = c('-D', '-', '-o', '/dev/null', f'http://{A}/xs/1m.bin')
                if 'pass' in p.features: res['pass'] = tool('up', '--addr', A, '--path', p.paths.get('pass', '/upload-nb'), '--secs', 1, '--threads', 1)
                res['rate'] = tool('rate', '--addr', A, '--rate', 2000, '--secs', 1)
                if 'reload' in p.features: p.render(gen=1); p.reload(); res['reload'] = p.wait_gen(1, 5)
                if 'up' in p.features: res['up'] = tool('up', '--addr', A, '--secs', 1, '--threads', 1)
                if 'ws' in p.features: res['ws'] = ws_run(A, 1, conns=5); res['wss'] = ws_run(T, 1, 1, conns=5)
                print(p.name, json.dumps(res, indent=1))
            except Exception as e: print(p.name, 'ERROR', repr(e))
            finally: p.stop()

def main():
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))     # lets the finally blocks stop the peers
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('cmd', choices=['run', 'check', 'report']); ap.add_argument('--peers', default=HERE + '/peers.yaml'); ap.add_argument('--only'); ap.add_argument('--peer')
    ap.add_argument('--rounds', type=int, default=3); ap.add_argument('--dur', type=int, default=3); ap.add_argument('--out', default=WORK + '/results/raw.jsonl'); ap.add_argument('--markdown')
    ap.add_argument('--idle', type=int, default=5000, help='at most ~6500: the stock peer configs and the 20,000 fd limit stop there'); ap.add_argument('--idle-rounds', type=int, default=1)
    ap.add_argument('--reload-rounds', type=int, default=2); ap.add_argument('--scale-rounds', type=int, default=3); ap.add_argument('--cert-rounds', type=int, default=2)
    a = ap.parse_args()
    if a.cmd == 'report':
        import report; return report.main(a.out, a.markdown)
    if os.geteuid() != 0: sys.exit('bench.py needs root: it measures in a network namespace of its own (unshare -n)')
    if os.cpu_count() < 2: sys.exit('bench.py needs two CPUs: one for the gateway, one for load and backends')
    if not os.path.exists(TOOL): sys.exit(TOOL + ' is not there; `make bench` builds it')
    if os.environ.get('BENCH_NS') != '1':
        os.environ['BENCH_NS'] = '1'; os.execvp('unshare', ['unshare', '-n', sys.executable, os.path.abspath(__file__)] + sys.argv[1:])
    subprocess.run('ip link set lo up; echo reno > /proc/sys/net/ipv4/tcp_congestion_control; echo 10240 65000 > /proc/sys/net/ipv4/ip_local_port_range; echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse', shell=True, check=False)
    {'run': run, 'check': check}[a.cmd](a)
if __name__ == '__main__': main()
