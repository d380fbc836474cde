"""Judge who may be a node: the claim of a booting node, its proof, and the judgement of it.

A boot script carries a nonce that was made for one boot of one node. The node makes its Salt
key in memory and sends the public half with an HMAC under the nonce; the nonce itself is not
sent back. The answer names the master's key, with an HMAC under the same nonce, so that the
node knows which master to trust. See doc/explanation/security.md for what this does not stop.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from netboot.boot.state import Boot, State, find

NONCE_BYTES = 32
BOOT_ID_BYTES = 16
# Scripts of one node that wait for their claim at the same time.
OPEN_BOOTS = 6
# A claim with a 4096 bit key is about 1.2 kB.
CLAIM_BYTES = 8192
KEY_BITS = (2048, 4096)
FIELDS = ("boot", "id", "mac", "image", "pub", "proof")
_FIELD_CHARACTERS = 4096


class ClaimError(ValueError):
    """A claim is refused; the text says why, for the record of the control node only."""


@dataclass(frozen=True)
class Claim:
    """A booting node's claim: who it says it is."""

    boot: str
    id: str
    mac: str
    image: str
    pub: str
    proof: str


@dataclass(frozen=True)
class Admission:
    """A claim that holds.

    `repeated` is a claim that was admitted before, word for word: its answer was lost on the
    way. It is answered again and changes nothing.
    """

    node: str
    boot: Boot
    pub: str
    key: str
    repeated: bool


def new_boot_id() -> str:
    """Return a name for a boot that cannot be guessed."""
    return secrets.token_hex(BOOT_ID_BYTES)


def new_nonce() -> str:
    """Return a secret for one boot, in hex."""
    return secrets.token_hex(NONCE_BYTES)


def claim_proof(nonce: str, boot: str, minion_id: str, mac: str, image: str, pub: str) -> str:
    """Return the HMAC-SHA256 (hex) with which a node proves that it has `nonce`, over its public key."""
    digest = hashlib.sha256(pub.encode()).hexdigest()
    return _hmac(nonce, "cluster-enrol-v1", boot, minion_id, mac, image, digest)


def master_proof(nonce: str, boot: str, minion_id: str, finger: str) -> str:
    """Return the HMAC-SHA256 (hex) with which the control node vouches for the master's fingerprint."""
    return _hmac(nonce, "cluster-master-v1", boot, minion_id, finger)


def _hmac(nonce: str, *words: str) -> str:
    return hmac.new(bytes.fromhex(nonce), "\n".join(words).encode(), hashlib.sha256).hexdigest()


def parse(body: bytes) -> Claim:
    """Return the claim in a request's body.

    Raises
    ------
    ClaimError
        When it is not a claim: too long, no JSON, other fields, other types.
    """
    if len(body) > CLAIM_BYTES:
        raise ClaimError("oversized")
    try:
        data = json.loads(body.decode("ascii"))
    except (ValueError, RecursionError):
        raise ClaimError("malformed") from None
    if not isinstance(data, dict) or set(data) != set(FIELDS):
        raise ClaimError("wrong fields")
    # JSON can spell any character in ASCII, half a surrogate pair too; nothing of a claim needs one.
    if not all(
        isinstance(value, str) and value.isascii() and len(value) <= _FIELD_CHARACTERS for value in data.values()
    ):
        raise ClaimError("wrong types")
    return Claim(**data)


def judge(claim: Claim, state: State, now: float) -> Admission:
    """Return what admits `claim`.

    Raises
    ------
    ClaimError
        When anything about it does not hold.
    """
    found = find(state, claim.boot)
    if found is None:
        raise ClaimError("unknown boot")
    node, boot = found
    if not boot.nonce:
        raise ClaimError("nonce void")
    expected = claim_proof(boot.nonce, boot.id, boot.minion_id, boot.mac, boot.image, claim.pub)
    proven = hmac.compare_digest(expected.encode(), claim.proof.encode())
    if now > boot.expires:
        raise ClaimError("late")
    # Each of these is under the HMAC as well; said apart, the record names what was wrong.
    if claim.id != boot.minion_id:
        raise ClaimError("other id")
    if claim.mac != boot.mac:
        raise ClaimError("other MAC")
    if claim.image != boot.image:
        raise ClaimError("other image")
    if not proven:
        raise ClaimError("wrong proof")
    pub = checked_key(claim.pub)
    key = hashlib.sha256(pub.encode()).hexdigest()
    if boot.enrolled_key and not hmac.compare_digest(boot.enrolled_key, key):
        raise ClaimError("nonce used")
    if state.nodes[node].blocked:
        raise ClaimError("node blocked")
    return Admission(node, boot, pub, key, bool(boot.enrolled_key))


def checked_key(pem: str) -> str:
    """Return a public key as Salt keeps it, when it is an RSA key that can be trusted to be one.

    Raises
    ------
    ClaimError
        When it is no PEM, no RSA key, of a length outside `KEY_BITS`, or of a small exponent.
    """
    try:
        key = load_pem_public_key(pem.encode("ascii"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ClaimError("no public key") from None
    if not isinstance(key, RSAPublicKey):
        raise ClaimError("no RSA key")
    if not KEY_BITS[0] <= key.key_size <= KEY_BITS[1]:
        raise ClaimError("weak key")
    if key.public_numbers().e < 65537:
        raise ClaimError("weak key")
    # Only the key goes into the store: nothing that stood before or behind it.
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().strip()
