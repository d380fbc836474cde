"""Carry out the steps of `netboot.reprovision.sequence`: through Salt, the boot service's runner and the image's."""

import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError, SaltException

from bottleneck.profile import ProfileError
from bottleneck.profile.boot_types import Boot
from bottleneck.profile.hardware_checks import refuse_open
from control import gateway, records
from control.nodes import Nodes, Options, progress
from netboot.reprovision import power, sequence

POLL_SECONDS = 2.0
PROMOTION_SECONDS = 60.0
ANSWER_SECONDS = 5

# Runner functions by name, such as Salt's ``__salt__``.
Functions = Mapping[str, Callable[..., Any]]


def prepare(
    nodes: Nodes, functions: Functions, names: Sequence[str], deployment: dict[str, Any] | None
) -> tuple[sequence.State, str]:
    """Return the state to begin with and the image that each node is to come back with.

    Parameters
    ----------
    nodes : Nodes
    functions : mapping
        Runner functions by name.
    names : sequence of str
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

    def __init__(self, nodes: Nodes, functions: Functions, target: str | None, force: bool = False) -> None:
        self.nodes, self.functions, self.force = nodes, functions, force
        self.target = target
        self.started = time.monotonic()
        self._before: dict[str, Any] = {}
        self._drained: list[str] = []

    def do(self, action: sequence.Action, state: sequence.State) -> None:
        """Do an action; raise CommandExecutionError when it fails."""
        self.report(action.kind, action.node, "")
        if action.node is None:
            of_cluster: dict[sequence.Kind, Callable[[sequence.State], None]] = {
                "drain": self._drain,
                "undeploy": self._undeploy,
                "redeploy": self._redeploy,
                "rollback": self._rollback,
            }
            of_cluster[action.kind](state)
        else:
            of_node: dict[sequence.Kind, Callable[[str, sequence.State], None]] = {
                "arm": self._arm,
                "reboot": self._reboot,
                "boot": self._boot,
                "apply": self._apply,
            }
            of_node[action.kind](action.node, state)

    def report(self, stage: str, node: str | None, detail: str) -> None:
        """Report a step as progress."""
        progress(stage, node or "", detail, self.started)

    def close(self) -> None:
        """Have the gateway send requests again to heads that are being drained."""
        if self._drained:
            gateway.serve(self.nodes.options, self._drained)
            self._drained = []

    # The deployment ----------------------------------------------------------------------

    def _drain(self, state: sequence.State) -> None:
        heads = [spec["node"] for spec in _deployed(state)["workers"] if spec["head"]]
        deadline = time.monotonic() + self._boot_settings.drain_seconds
        self._drained = heads
        if problem := gateway.drain(self.nodes.options, heads):
            self.report("drain", ", ".join(heads), f"new requests are not refused: {problem}")
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
            seconds = self._boot_settings.drain_seconds
            raise CommandExecutionError(
                f"{sum(left.values()):.0f} requests did not end in {seconds:.0f} s; it goes on serving"
                " (--force cuts them off)"
            )

    def _requests(self, heads: Sequence[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, workers in self.nodes.ask_workers(names=heads, timeout=ANSWER_SECONDS).items():
            # A head that is silent serves nobody.
            for worker in (workers or {}).values():
                count = sum((worker.get("requests") or {}).values())
                if count:
                    found[name] = found.get(name, 0.0) + count
        return found

    def _undeploy(self, state: sequence.State) -> None:
        try:
            self.functions["cluster.undeploy"]()
        except SaltException:
            # A silent node is often why it is reprovisioned; what matters is that no other still works.
            others = [name for name in self.nodes.names if name not in state.waiting]
            running = (
                [name for name, seen in self.nodes.ask_workers(names=others).items() if _runs(seen)] if others else []
            )
            if running:
                self.close()
                raise
        # Nothing serves now: the gateway is told of the heads that do by the next deploy.
        self._drained = []

    def _redeploy(self, state: sequence.State) -> None:
        deployed = _deployed(state)
        self.functions["cluster.deploy"](deployed["deployment"], deployed["overrides"] or None)

    # One node ----------------------------------------------------------------------------

    def _arm(self, node: str, state: sequence.State) -> None:
        if state.stage == "nodes":
            self._await_image(node)
        self._before[node] = self.functions["boot.status"](node)["boot"]
        self.functions["boot.arm"](node)

    def _await_image(self, node: str) -> None:
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

    def _reboot(self, node: str, _state: sequence.State) -> None:
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

    def _boot(self, node: str, _state: sequence.State) -> None:
        limit = self._boot_settings.return_seconds
        deadline = time.monotonic() + limit
        reported = ""
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
            if reported != (reported := f"{reached} {stuck}".strip()):
                self.report("boot", node, reported)
            time.sleep(POLL_SECONDS)
        # Its key is in before its minion listens; what is sent to it until then is lost.
        while not self.nodes.answering([node], ANSWER_SECONDS):
            if time.monotonic() >= deadline:
                raise CommandExecutionError(f"{node} is enrolled, but its minion does not answer")
        if seen["image"] != self.target:
            raise CommandExecutionError(f"it came back with image {seen['image']}; expected {self.target}")

    def _apply(self, node: str, _state: sequence.State) -> None:
        failed = self.functions["cluster.apply"](only=[node])[node]["failed"]
        if failed:
            raise CommandExecutionError(f"{failed[0]['id']}: {failed[0]['comment']}")

    def _rollback(self, _state: sequence.State) -> None:
        active = self.functions["image.active"]()
        if active.get("canary") or active.get("digest") == self.target:
            self.functions["image.rollback"]()
        # Else it was rolled back by itself, as a canary that does not come back is: not a second time.
        self.target = self.functions["image.active"]()["digest"]

    @property
    def _boot_settings(self) -> Boot:
        settings = self.nodes.profile.boot
        if settings is None:
            raise CommandExecutionError(f"the nodes of profile {self.nodes.profile.name} do not boot over the network")
        return settings


def run(state: sequence.State, carrier: Carrier, opts: Options) -> sequence.State:
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


def unfinished(opts: Options) -> dict[str, Any] | None:
    """Return the deployment that a run which was cut off had taken down, or None."""
    document = records.read(opts, records.REPROVISION)
    return document["deployment"] if document.get("undeployed") and document.get("stage") != "ended" else None


def _deployed(state: sequence.State) -> dict[str, Any]:
    if state.deployment is None:
        raise CommandExecutionError("nothing was deployed, so there is nothing to drain or to deploy again")
    return state.deployment


def _runs(workers: Mapping[str, Any] | None) -> bool:
    return any(worker.get("stage") not in ("failed", "stopped") for worker in (workers or {}).values())


def _text(stuck: object) -> str:
    if isinstance(stuck, dict):
        return ", ".join(f"{key} {value}" for key, value in stuck.items() if value)
    return str(stuck)


def _record(opts: Options, state: sequence.State) -> None:
    document = {**sequence.to_document(state), "summary": sequence.summary(state), "at": time.time()}
    records.write(opts, records.REPROVISION, document)
