"""The control node: judges what inspection.py saw there against the profile."""

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bottleneck.profile.types import Profile
from cli.doctor.check import Check, judged

PLACE = "control"
INSPECTION = Path(__file__).with_name("inspection.py")
LEAST_FREE_BYTES = 5 * 10**9
MOST_CLOCK_SECONDS = 2.0
AGAIN = "cluster control init"


def judge_control(profile: Profile, seen: Mapping[str, Any], clock_seconds: float | None, salt: str) -> Iterator[Check]:
    """Return a check for each thing that was looked at.

    Parameters
    ----------
    seen
        What inspection.py printed.
    clock_seconds
        How far its clock is from ours, None when that was not measured.
    salt
        The version of Salt that the lock file names.
    """
    yield Check(PLACE, "system", "ok", str(seen["system"]))
    yield from _interface(profile, seen["interface"])
    yield _dhcp(profile, seen["dhcp"])
    yield from _ports(profile, seen["listeners"])
    for name, state in seen["services"].items():
        if name == "cluster-dnsmasq" and profile.boot is None:
            continue
        mend = f"cluster control cmd -- journalctl -n 30 -u {name}; or: {AGAIN}"
        yield judged(PLACE, name, state == "active", f"systemd says {state or 'nothing'}", mend)
    yield judged(
        PLACE, "Salt", seen["salt"] == salt, f"{seen['salt'] or 'not installed'}; the lock file has {salt}", AGAIN
    )
    for path, (total, free) in seen["disk"].items():
        text = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield judged(PLACE, f"disk {path}", free >= LEAST_FREE_BYTES, text, "cluster image gc", "warning")
    yield from _clock(seen["clock"], clock_seconds)
    yield from _keys(profile, seen)
    if profile.boot is not None:
        yield _image(profile, seen["images"])


def _interface(profile: Profile, seen: Mapping[str, Any]) -> Iterator[Check]:
    name = str(profile.control.interface)
    if not seen["exists"]:
        others = ", ".join(seen["others"]) or "none"
        yield Check(
            PLACE, "interface", "failed", f"no {name}; there are {others}", "plug it in, or name another in the profile"
        )
        return
    up = seen["state"] in ("up", "unknown")
    yield judged(PLACE, "interface", up, f"{name} is {seen['state']}", "look at its cable and the switch")
    network = profile.networks[profile.control.network]
    wanted = f"{profile.control.address}/{network.prefix_length}"
    has = wanted in seen["addresses"]
    yield judged(PLACE, "address", has, f"{', '.join(seen['addresses']) or 'none'}; expected {wanted}", AGAIN)
    routed = name in seen["default_routes"]
    text = f"default route over {', '.join(map(str, seen['default_routes'])) or 'nothing'}"
    yield judged(PLACE, "default route", not routed, text, f"take the gateway out of {name}'s configuration")


def _dhcp(profile: Profile, seen: Mapping[str, Any]) -> Check:
    what = "other DHCP servers"
    if not seen["asked"]:
        reason = seen.get("reason", "the interface is not there")
        return Check(PLACE, what, "unknown", f"could not ask: {reason}", "look again once the interface is up, as root")
    others = [server for server in seen["servers"] if server != profile.control.address]
    if profile.boot is not None and profile.boot.dhcp == "proxy":
        mend = "switch that server on, or set boot.dhcp: serve"
        return judged(PLACE, what, len(others) == 1, f"{', '.join(others) or 'none'}; expected one", mend)
    mend = "switch it off, or set boot.dhcp: proxy in the profile"
    return judged(PLACE, what, not others, f"{', '.join(others) or 'none'} answered on the cluster's interface", mend)


def _ports(profile: Profile, seen: list[dict[str, Any]]) -> Iterator[Check]:
    # The last is where samplers ask what is stored: without it each batch is sent again, and a job acknowledges it.
    salt = (4505, 4506, profile.telemetry.exporter_port)
    wanted = [("tcp", port, "salt-master") for port in salt] + [("tcp", profile.control.gateway_port, "haproxy")]
    if profile.boot is not None:
        # The boot service is an engine of the master; a port that nobody holds is no conflict.
        wanted += [("tcp", profile.boot.port, "salt-master"), ("udp", 67, "dnsmasq"), ("udp", 69, "dnsmasq")]
    for protocol, port, program in wanted:
        holders = [
            each
            for each in seen
            if (each["protocol"], each["port"]) == (protocol, port) and _is_ours(profile, each["address"])
        ]
        names = sorted({str(each["program"] or "a program that is not shown") for each in holders})
        what = f"port {port}/{protocol}"
        if not holders:
            yield Check(PLACE, what, "failed", f"nobody listens; expected {program}", AGAIN)
        elif names == [program]:
            yield Check(PLACE, what, "ok", f"held by {', '.join(names)}")
        else:
            yield Check(
                PLACE, what, "failed", f"held by {', '.join(names)}; expected {program}", f"end it there, then {AGAIN}"
            )


def _is_ours(profile: Profile, address: str) -> bool:
    """Tell whether a listening address covers the control node's own on the cluster's network."""
    bare = address.partition("%")[0].strip("[]")
    if bare in ("*", "0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        return True
    try:
        return ipaddress.ip_address(bare) == ipaddress.ip_address(profile.control.address)
    except ValueError:
        return False


def _clock(synchronized: str | None, seconds: float | None) -> Iterator[Check]:
    text = {"yes": "follows its time servers", "no": "follows no time server"}.get(synchronized or "", "unknown")
    status = judged(
        PLACE, "time servers", synchronized == "yes", text, "cluster control cmd -- chronyc tracking", "warning"
    )
    yield status
    if seconds is None:
        yield Check(PLACE, "clock", "unknown", "not compared")
        return
    mend = "set the clock of the machine that is wrong"
    yield judged(
        PLACE, "clock", abs(seconds) < MOST_CLOCK_SECONDS, f"{seconds:+.2f} s from this laptop's", mend, "warning"
    )


def _keys(profile: Profile, seen: Mapping[str, Any]) -> Iterator[Check]:
    wanted = {node.hostname for node in profile.nodes.values()}
    keys = seen["keys"]
    mode = seen["pki_mode"]
    if mode is None:
        yield Check(PLACE, "keys", "failed", "the master has none yet", AGAIN)
        return
    private = mode & 0o077 == 0
    yield judged(PLACE, "key folder", private, f"mode {mode:04o}", "chmod 0700 /etc/salt/pki/master")
    accepted, strangers = set(keys.get("accepted", [])), set(keys.get("accepted", [])) - wanted
    missing = sorted(wanted - accepted)
    text = f"accepted: {', '.join(sorted(accepted)) or 'none'}"
    mend = f"boot {', '.join(missing)}: cluster boot watch" if missing else ""
    yield judged(PLACE, "keys of nodes", not missing, text, mend, "warning")
    if strangers:
        names = ", ".join(sorted(strangers))
        yield Check(PLACE, "foreign keys", "failed", f"accepted, and in no profile: {names}", "salt-key -d NAME there")
    waiting = {state: keys[state] for state in ("pending", "denied") if keys.get(state)}
    if waiting:
        text = "; ".join(f"{state}: {', '.join(names)}" for state, names in waiting.items())
        yield Check(
            PLACE, "keys not let in", "warning", text, "cluster boot watch tells who asked and why it was refused"
        )


def _image(profile: Profile, images: Mapping[str, Any]) -> Check:
    image = images.get(profile.name)
    if image is None:
        return Check(PLACE, "image", "failed", f"profile {profile.name} has no active image", "cluster image build")
    if image["digest"] is None:
        return Check(PLACE, "image", "failed", f"cannot be read: {image['reason']}", "cluster image build")
    missing = ", ".join(image["missing"])
    text = f"{image['digest']}{f', without {missing}' if missing else ''}"
    return judged(PLACE, "image", not missing, text, "cluster image build")
