"""Attempts of a hostile machine on the provisioning wire against the boot service, by kind.

Each kind makes its attempts from what an attacker could hold: nothing, another node's nonce, a
captured claim. An attempt has failed when the service refuses it and the master's keys are as before.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import aiohttp
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from netboot.boot.enrolment import CLAIM_BYTES, claim_proof, master_proof

ATTACKER = "127.0.0.66"
SIDE_BY_SIDE = 12


def public_key(bits: int = 2048, exponent: int = 65537) -> str:
    """Return a new RSA public key."""
    key = rsa.generate_private_key(public_exponent=exponent, key_size=bits)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().strip()


def key_pair() -> tuple[str, str]:
    """Return a new private and public key, as Salt writes them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return private, public.strip()


@dataclass(frozen=True)
class Boot:
    """A boot script's contents for whoever reads it."""

    boot: str
    id: str
    mac: str
    image: str
    nonce: str

    def claim(self, pub: str, **changed: str) -> dict[str, str]:
        """Return a claim; what is `changed` is what the proof is made over, too."""
        content = {"boot": self.boot, "id": self.id, "mac": self.mac, "image": self.image, "pub": pub, **changed}
        proof = claim_proof(
            self.nonce, content["boot"], content["id"], content["mac"], content["image"], content["pub"]
        )
        return {**content, "proof": changed.get("proof", proof)}


@dataclass
class Node:
    """A legitimate node, by its address and what it is."""

    url: str
    address: str
    mac: str
    uuid: str = "0"

    async def script(self, source: str | None = None, mac: str | None = None) -> str:
        """Ask for a boot script, as iPXE does."""
        async with session(source or self.address) as client:
            query = {"mac": (mac or self.mac).replace(":", "-"), "uuid": self.uuid, "platform": "pcbios"}
            async with client.get(f"{self.url}/script", params=query) as response:
                return await response.text()

    async def begin(self) -> Boot:
        """Ask for a boot script and read it."""
        text = await self.script()
        values = dict(re.findall(r"cluster\.(\w+)=(\S+)", text))
        assert "nonce" in values, f"no boot script for {self.mac}: {text}"
        return Boot(values["boot"], values["id"], self.mac, values["image"], values["nonce"])

    async def enrol(self, pub: str) -> Boot:
        """Boot and enrol, as a node does; the answer is checked as a node checks it."""
        boot = await self.begin()
        status, text = await post(self.url, json.dumps(boot.claim(pub)).encode(), self.address)
        assert status == 200, f"a legitimate node was refused: {status} {text}"
        answer = json.loads(text)
        assert answer["proof"] == master_proof(boot.nonce, boot.boot, boot.id, answer["master_finger"])
        return boot


def session(source: str) -> aiohttp.ClientSession:
    """Return a client that sends from `source`."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(local_addr=(source, 0), limit=SIDE_BY_SIDE),
        timeout=aiohttp.ClientTimeout(total=60),
        trust_env=False,
    )


async def post(url: str, body: bytes, source: str) -> tuple[int, str]:
    """Send one claim."""
    async with session(source) as client, client.post(f"{url}/enrol", data=body) as response:
        return response.status, await response.text()


@dataclass
class Arsenal:
    """Everything that the attacker has."""

    used: Boot
    captured: dict[str, str]
    open: Boot
    late: list[Boot]
    other_id: str
    own_pub: str
    random: random.Random = field(default_factory=lambda: random.Random(20261124))

    def kinds(self) -> dict[str, Callable[[int], bytes]]:
        """Return kind -> what makes the body of its attempts."""
        return {
            "replay of an admitted claim": lambda _: _json(self.captured),
            "used nonce of a node that is alive, own key": lambda _: _json(self.used.claim(self.own_pub)),
            "other id": lambda _: _json(self.open.claim(self.own_pub, id=self.other_id)),
            "other MAC": lambda n: _json(
                self.open.claim(self.own_pub, mac=f"02:00:00:00:{n >> 8 & 255:02x}:{n & 255:02x}")
            ),
            "wrong image digest": lambda n: _json(self.open.claim(self.own_pub, image=f"{n:016x}")),
            "late": lambda n: _json(self.late[n % len(self.late)].claim(self.own_pub)),
            "guessed nonce": lambda n: _json(_guess(self.open, self.random).claim(self.own_pub)),
            "guessed boot": lambda n: _json(self.open.claim(self.own_pub, boot=self.random.randbytes(16).hex())),
            "proof of another length or alphabet": lambda n: _json(self.open.claim(self.own_pub, proof=_odd_proof(n))),
            "truncated": lambda n: _cut(_json(self.open.claim(self.own_pub)), n),
            "oversized": lambda n: _json({**self.open.claim(self.own_pub), "pub": "A" * (CLAIM_BYTES + n)}),
            "malformed": lambda n: _malformed(n, self.open.claim(self.own_pub)),
            "no public key, nonce known": lambda n: _json(self.open.claim(_no_key(n))),
            "weak key, nonce known": lambda n: _json(self.open.claim(WEAK[n % len(WEAK)])),
        }


def _json(claim: dict[str, str]) -> bytes:
    return json.dumps(claim).encode()


def _guess(boot: Boot, source: random.Random) -> Boot:
    return Boot(boot.boot, boot.id, boot.mac, boot.image, source.randbytes(32).hex())


def _odd_proof(number: int) -> str:
    return ("", "0", "0" * 63, "0" * 65, "é" * 64, "G" * 64, "\x00" * 64, "0" * 4000)[number % 8]


def _cut(body: bytes, number: int) -> bytes:
    return body[: number % (len(body) - 1)]


def _malformed(number: int, claim: dict[str, str]) -> bytes:
    bodies: list[bytes] = [
        b"\xff\xfe\x00" * 50,
        b"[" * 4000,
        b'{"boot":' * 800,
        b"null",
        b"[]",
        b'"claim"',
        _json({**claim, "more": "x"}),
        json.dumps({**claim, "id": ["node0"]}).encode(),
        json.dumps({**claim, "pub": {"pem": claim["pub"]}}).encode(),
        json.dumps({**claim, "proof": True}).encode(),
        json.dumps({**claim, "boot": None}).encode(),
        json.dumps({**claim, "id": "../../minions/node0"}).encode(),
        b"{'single': 'quotes'}",
        b'{"boot": NaN}',
        _json(claim).replace(b"-----BEGIN", b"\\ud800-----BEGIN"),
    ]
    return bodies[number % len(bodies)]


def _pem(kind: str) -> str:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    if kind == "elliptic":
        return elliptic.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


_NO_KEYS = (
    "",
    "ssh-rsa AAAAB3NzaC1yc2E",
    "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
    "-----BEGIN PUBLIC KEY-----",
    _pem("elliptic"),
    _pem("private"),
    "\n" * 500,
)
WEAK = (public_key(1024), public_key(2048, 3))


def _no_key(number: int) -> str:
    return _NO_KEYS[number % len(_NO_KEYS)]


async def attack(url: str, bodies: Iterator[bytes], source: str = ATTACKER) -> dict[int, int]:
    """Send every body as a claim, many side by side; return status -> how often."""
    answers: dict[int, int] = {}

    async def work(client: aiohttp.ClientSession) -> None:
        for body in bodies:
            try:
                async with client.post(f"{url}/enrol", data=body) as response:
                    await response.read()
                    answers[response.status] = answers.get(response.status, 0) + 1
            except aiohttp.ClientError:
                # Refused in the middle of the body: no answer is an answer too.
                answers[0] = answers.get(0, 0) + 1

    async with session(source) as client:
        await asyncio.gather(*(work(client) for _ in range(SIDE_BY_SIDE)))
    return answers


async def scripts(node: Node, number: int, source: str, mac: Callable[[int], str]) -> int:
    """Ask for scripts as a machine at `source` would; return how many held a nonce."""
    got = 0
    numbers = iter(range(number))

    async def work(client: aiohttp.ClientSession) -> None:
        nonlocal got
        for count in numbers:
            query = {"mac": mac(count), "uuid": "0", "platform": "efi"}
            async with client.get(f"{node.url}/script", params=query) as response:
                got += "nonce" in await response.text()

    async with session(source) as client:
        await asyncio.gather(*(work(client) for _ in range(SIDE_BY_SIDE)))
    return got


async def half_requests(host: str, port: int, number: int) -> list[asyncio.StreamWriter]:
    """Open connections that begin a request and never end it."""
    writers: list[asyncio.StreamWriter] = []
    for _ in range(number):
        _, writer = await asyncio.open_connection(host, port, local_addr=(ATTACKER, 0))
        writer.write(b"POST /enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n{")
        await writer.drain()
        writers.append(writer)
    return writers
