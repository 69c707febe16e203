"""What testssl.sh and sslscan find in the TLS of a front end, and its grade by the rating guide of SSL Labs (2009r).

The certificate is made here and trusted by nobody, so that what is said of it is left out, and with it the grades T and M; A+ takes a header,
which is the application's.
"""

import asyncio
import json
import shutil
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

#: Of testssl.sh: protocols, categories of ciphers, forward secrecy, preference of the server, vulnerabilities.
LOOKED_AT = ["-p", "-s", "-f", "-P", "-U"]
#: How long it may take with one front end, and how many are looked at at once.
SECONDS, AT_ONCE = 240, 2
#: Not of the front end, but of the certificate or of the OpenSSL that testssl.sh is given.
NOT_THEIRS = ("cert", "DNS", "OCSP", "engine_problem", "sessionresumption", "scanTime")
PROTOCOLS = {"SSLv2": 0, "SSLv3": 80, "TLSv1.0": 90, "TLSv1.1": 95, "TLSv1.2": 100, "TLSv1.3": 100}
SEVERITIES = ["LOW", "MEDIUM", "HIGH", "CRITICAL"]


@dataclass
class Cipher:
    protocol: str
    name: str
    bits: int
    #: Of the key exchange, as an RSA key of the same strength has.
    exchange: int

    @property
    def forward_secret(self):
        return self.protocol == "TLSv1.3" or "DHE" in self.name

    @property
    def authenticated(self):
        return any(mode in self.name for mode in ("GCM", "CCM", "CHACHA20", "POLY1305"))


@dataclass
class Finding:
    """One of testssl.sh's."""

    severity: str
    text: str
    vulnerability: bool = False


@dataclass
class Scan:
    protocols: list
    ciphers: list
    findings: list

    def grade(self):
        if not self.ciphers:
            return "none"
        protocols = [PROTOCOLS[protocol] for protocol in self.protocols]
        strengths = [steps(cipher.bits, (1, 20), (128, 80), (256, 100)) for cipher in self.ciphers]
        exchange = min(steps(cipher.exchange, (1, 20), (512, 40), (1024, 80), (2048, 90), (4096, 100)) for cipher in self.ciphers)
        mean = lambda values: (min(values) + max(values)) / 2  # noqa: E731
        score = 0.3 * mean(protocols) + 0.3 * exchange + 0.4 * mean(strengths)
        grades = [steps(score, (0, "F"), (20, "E"), (35, "D"), (50, "C"), (65, "B"), (80, "A"))]
        if "TLSv1.3" not in self.protocols:
            grades.append("A-")
        if {"TLSv1.0", "TLSv1.1"} & set(self.protocols) or any("RC4" in cipher.name for cipher in self.ciphers):
            grades.append("B")
        if not any(cipher.forward_secret for cipher in self.ciphers) or not any(cipher.authenticated for cipher in self.ciphers):
            grades.append("B")
        if "SSLv3" in self.protocols or "TLSv1.2" not in self.protocols or any("3DES" in cipher.name for cipher in self.ciphers):
            grades.append("C")
        if "SSLv2" in self.protocols or any(each.vulnerability and each.severity in SEVERITIES[2:] for each in self.findings):
            grades.append("F")
        return max(grades, key=["A", "A-", "B", "C", "D", "E", "F"].index)

    def count(self, severity):
        return sum(each.severity == severity for each in self.findings)

    def faults(self):
        faults = [] if self.grade() == "A" else [f"grade {self.grade()}"]
        worse = sum(self.count(severity) for severity in SEVERITIES[1:])
        return faults + ([f"{worse} findings"] if worse else [])

    def row(self):
        return {
            "grade": self.grade(),
            "protocols": ", ".join(self.protocols),
            "ciphers": str(len(self.ciphers)),
            "least bits": str(min((cipher.bits for cipher in self.ciphers), default=0)),
            "without forward secrecy": str(sum(not cipher.forward_secret for cipher in self.ciphers)),
            "not authenticated (CBC)": str(sum(not cipher.authenticated for cipher in self.ciphers)),
            **{f"testssl: {severity.lower()}": str(self.count(severity)) for severity in SEVERITIES},
            "verdict": ", ".join(self.faults()) or "well",
        }


def steps(value, *pairs):
    """What belongs to the highest step that `value` has reached; 0 below the first."""
    return next((result for least, result in reversed(pairs) if value >= least), 0)


async def scan(front, turn):
    """`None` where one of the programs is not installed."""
    testssl, sslscan = shutil.which("testssl") or shutil.which("testssl.sh"), shutil.which("sslscan")
    if not testssl or not sslscan:
        return None
    async with turn:
        told = await output("timeout", str(SECONDS), sslscan, "--no-colour", "--xml=-", "--no-cipher-details", "--sni-name=localhost", f"127.0.0.1:{front.tls}")
        report = front.folder / "testssl.json"
        options = ["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1"]
        patience = ["--connect-timeout", "5", "--openssl-timeout", "5"]
        await output("timeout", str(SECONDS), testssl, *LOOKED_AT, *options, *patience, "--jsonfile", report, f"localhost:{front.tls}")
    protocols, ciphers = read_sslscan(told)
    return Scan(protocols, ciphers, read_testssl(report))


async def output(*command):
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL)
    told, _ = await process.communicate()
    return told.decode(errors="replace")


def read_sslscan(told):
    if "<?xml" not in told:
        return [], []
    tree = xml.etree.ElementTree.fromstring(told[told.index("<?xml") :])
    versions = [(each.get("type").upper().replace("SSL", "SSLv").replace("TLS", "TLSv") + each.get("version"), each) for each in tree.iter("protocol")]
    protocols = [name for name, each in versions if each.get("enabled") == "1"]
    key = max((int(each.get("bits")) for each in tree.iter("pk") if each.get("type") == "RSA"), default=3072)
    ciphers = []
    for each in tree.iter("cipher"):
        # An elliptic curve of 256 bits is as strong as RSA with 3072 (NIST SP 800-57).
        curve, dh = int(each.get("ecdhebits") or 0), int(each.get("dhebits") or 0)
        ciphers.append(Cipher(each.get("sslversion"), each.get("cipher"), int(each.get("bits")), curve * 12 or dh or key))
    return protocols, ciphers


def read_testssl(report):
    try:
        found = json.loads(Path(report).read_text())
    except (OSError, ValueError):
        return [Finding("CRITICAL", "testssl.sh has no report")]
    theirs = [each for each in found if not each["id"].startswith(NOT_THEIRS)]
    if not any(each["id"] == "RC4" for each in theirs):
        return [Finding("CRITICAL", "testssl.sh did not come to an end")]
    told = [each for each in theirs if each["severity"] in SEVERITIES]
    return [Finding(each["severity"], f"{each['id']}: {each['finding']}", "cve" in each) for each in told]


async def run(fronts):
    """What was found of each front end that runs, by its name."""
    turn = asyncio.Semaphore(AT_ONCE)
    found = await asyncio.gather(*(scan(front, turn) for front in fronts))
    return {front.name: each for front, each in zip(fronts, found) if each}
