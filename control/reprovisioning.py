"""Carry out what `netboot.reprovision.sequence` says: through Salt, the boot service's runner and the image's."""

import contextlib
import fcntl
import ipaddress
import time
from pathlib import Path

from salt.exceptions import CommandExecutionError, SaltException

from bottleneck.profile import ProfileError
from bottleneck.profile.hardware_checks import refuse_open
from control import records
from control.nodes import progress
from netboot.reprovision import power, sequence

POLL_SECONDS = 2.0
PROMOTION_SECONDS = 60.0
ANSWER_SECONDS = 5


def prepare(nodes, functions, names, deployment):
    """Return the state to begin with and the image that each node is to come back with.

    Parameters
    ----------
    nodes : control.nodes.Nodes
    functions : dict
        Runner functions by name, such as Salt's ``__salt__``.
    names : list of str
        Nodes to reprovision.
    deployment : dict or None
        Record of what is deployed.

    Raises
    ------
    CommandExecutionError
        When the profile's nodes do not boot over the network, or something of it is still unknown.
    """
    profile = nodes.profile
    if profile.boot is None:
        raise CommandExecutionError(
            f"the nodes of profile {profile.name} do not boot over the network: there is nothing to boot them with"
        )
    try:
        refuse_open(profile)
    except ProfileError as error:
        raise CommandExecutionError(f"{error} (cluster profile set-mac)") from error
    for name in names:
        nodes.minion(name)
    active = functions["image.active"]()
    trial = active.get("canary") or {}
    target = trial.get("digest") or active.get("digest")
    if target is None:
        raise CommandExecutionError(f"no image is active for profile {profile.name} (cluster image build --activate)")
    renewed = {name for name in names if functions["boot.status"](name)["image"] not in (None, target)}
    state = sequence.begin(
        list(names),
        canary=trial.get("node") or profile.boot.canary or next(iter(profile.nodes)),
        deployment=deployment,
        renewed=frozenset(renewed),
        attempts=profile.boot.attempts,
    )
    return state, target


class Carrier:
    """Does one action after the other.

    Parameters
    ----------
    target : str
        Digest of the image that nodes are to come back with.
    force : bool
        Whether requests that do not end in time are cut off.
    """

    def __init__(self, nodes, functions, target, force=False):
        self.nodes, self.functions, self.force = nodes, functions, force
        self.target = target
        self.started = time.monotonic()
        self._before = {}
        self._closed = []

    def do(self, action, state):
        """Do an action; raise CommandExecutionError when it fails."""
        self.report(action.kind, action.node, "")
        if action.node is None:
            getattr(self, f"_{action.kind}")(state)
        else:
            getattr(self, f"_{action.kind}")(action.node, state)

    def report(self, stage, node, detail):
        progress(stage, node or "", detail, self.started)

    def close(self):
        """Let requests in again where they were held off."""
        if self._closed:
            self.nodes.ask("drain.stop", names=self._closed, timeout=ANSWER_SECONDS)
            self._closed = []

    # The deployment ----------------------------------------------------------------------

    def _drain(self, state):
        heads = {spec["node"]: spec for spec in state.deployment["workers"] if spec["head"]}
        deadline = time.monotonic() + self.nodes.profile.boot.drain_seconds
        for name, spec in heads.items():
            answer = self.nodes.ask("drain.start", [spec["api_port"]], names=[name], timeout=ANSWER_SECONDS)[name]
            if answer is True:
                self._closed.append(name)
            else:
                self.report("drain", name, f"new requests are not held off: {answer or 'no answer'}")
        while True:
            left = self._requests(heads)
            if not left:
                return
            if time.monotonic() >= deadline:
                break
            self.report("drain", ", ".join(left), f"{sum(left.values()):.0f} requests under way")
            time.sleep(POLL_SECONDS)
        if not self.force:
            self.close()
            seconds = self.nodes.profile.boot.drain_seconds
            raise CommandExecutionError(
                f"{sum(left.values()):.0f} requests did not end in {seconds:.0f} s; it goes on serving"
                " (--force cuts them off)"
            )

    def _requests(self, heads):
        found = {}
        for name, workers in self.nodes.ask_workers(names=list(heads), timeout=ANSWER_SECONDS).items():
            # A head that is silent serves nobody.
            for worker in (workers or {}).values():
                count = sum((worker.get("requests") or {}).values())
                if count:
                    found[name] = found.get(name, 0.0) + count
        return found

    def _undeploy(self, state):
        try:
            self.functions["cluster.undeploy"]()
        except SaltException:
            # A silent node is often why it is reprovisioned; what matters is that no other still works.
            others = [name for name in self.nodes.names if name not in state.waiting]
            running = (
                [name for name, seen in self.nodes.ask_workers(names=others).items() if _runs(seen)] if others else []
            )
            if running:
                raise
        finally:
            self.close()

    def _redeploy(self, state):
        self.functions["cluster.deploy"](state.deployment["deployment"], state.deployment["overrides"] or None)

    # One node ----------------------------------------------------------------------------

    def _arm(self, node, state):
        if state.stage == "nodes":
            self._await_image(node)
        self._before[node] = self.functions["boot.status"](node)["boot"]
        self.functions["boot.arm"](node)

    def _await_image(self, node):
        """Wait until the image on trial is everyone's: the canary has just come back with it."""
        deadline = time.monotonic() + PROMOTION_SECONDS
        while True:
            active = self.functions["image.active"]()
            trial = active.get("canary") or {}
            offered = trial.get("digest") if trial.get("node") == node else active.get("digest")
            if offered == self.target:
                return
            if time.monotonic() >= deadline:
                raise CommandExecutionError(f"{node} would boot image {offered}; expected {self.target}")
            time.sleep(POLL_SECONDS)

    def _reboot(self, node, _state):
        minion = self.nodes.minion(node)
        if self.nodes.answering([node], ANSWER_SECONDS):
            self.nodes.client.cmd_async(minion, "system.reboot")
            return
        profile = self.nodes.profile
        subnet = ipaddress.IPv4Network(profile.networks[profile.control.network].subnet)
        try:
            power.cycle(
                profile.nodes[node],
                profile.control.network,
                source=profile.control.address,
                broadcast=str(subnet.broadcast_address),
                tell=lambda text: self.report("by hand", node, text),
            )
        except power.PowerError as error:
            raise CommandExecutionError(str(error)) from error

    def _boot(self, node, _state):
        limit = self.nodes.profile.boot.return_seconds
        deadline = time.monotonic() + limit
        said = ""
        while True:
            seen = self.functions["boot.status"](node)
            fresh = seen["boot"] is not None and seen["boot"] != self._before.get(node)
            reached = list(seen["stages"])[-1] if fresh and seen["stages"] else "nothing yet"
            if fresh and "enrolled" in seen["stages"]:
                break
            stuck = _text(seen["stuck"]) if seen["stuck"] else ""
            if time.monotonic() >= deadline:
                why = f", stuck: {stuck}" if stuck else ""
                raise CommandExecutionError(f"not back {limit:.0f} s after its reboot; reached: {reached}{why}")
            if said != (said := f"{reached} {stuck}".strip()):
                self.report("boot", node, said)
            time.sleep(POLL_SECONDS)
        # Its key is in before its minion listens; what is sent to it until then is lost.
        while not self.nodes.answering([node], ANSWER_SECONDS):
            if time.monotonic() >= deadline:
                raise CommandExecutionError(f"{node} is enrolled, but its minion does not answer")
        if seen["image"] != self.target:
            raise CommandExecutionError(f"it came back with image {seen['image']}; expected {self.target}")

    def _apply(self, node, _state):
        failed = self.functions["cluster.apply"](only=[node])[node]["failed"]
        if failed:
            raise CommandExecutionError(f"{failed[0]['id']}: {failed[0]['comment']}")

    def _rollback(self, _state):
        active = self.functions["image.active"]()
        if active.get("canary") or active.get("digest") == self.target:
            self.functions["image.rollback"]()
        # Else it was rolled back by itself, as a canary that does not come back is: not a second time.
        self.target = self.functions["image.active"]()["digest"]


def run(state, carrier, opts):
    """Carry out a run to its end, with its state on record; return the last state."""
    try:
        while (action := sequence.next_action(state)).kind != "end":
            _record(opts, state)
            error = None
            try:
                carrier.do(action, state)
            except SaltException as failure:
                error = str(failure)
                carrier.report("failed", action.node, f"{action.kind}: {error}")
            state = sequence.after(state, error)
        return state
    finally:
        carrier.close()
        _record(opts, state)


def unfinished(opts):
    """Return the deployment that a run which was cut off had taken down, or None."""
    document = records.read(opts, records.REPROVISION)
    return document["deployment"] if document.get("undeployed") and document.get("stage") != "ended" else None


@contextlib.contextmanager
def alone(path):
    """Hold the lock of reprovisioning; raise when another run has it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandExecutionError(
                "nodes are being reprovisioned already (salt-run reprovision.status)"
            ) from error
        yield


def _runs(workers):
    return any(worker.get("stage") not in ("failed", "stopped") for worker in (workers or {}).values())


def _text(stuck):
    if isinstance(stuck, dict):
        return ", ".join(f"{key} {value}" for key, value in stuck.items() if value)
    return str(stuck)


def _record(opts, state):
    document = {**sequence.to_document(state), "summary": sequence.summary(state), "at": time.time()}
    records.write(opts, records.REPROVISION, document)
