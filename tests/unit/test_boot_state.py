"""A boot as a value: stages, deadlines, causes, and where the time went."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from netboot.boot import progress_report, storage
from netboot.boot.events import (
    Armed,
    Blocked,
    Deploying,
    DhcpAsked,
    Enrolled,
    Event,
    Refused,
    ScriptGiven,
    StageReached,
    Troubled,
    UnknownAsked,
)
from netboot.boot.stages import BOOT_STAGES, STAGES, BootStage
from netboot.boot.state import (
    BOOTS_KEPT,
    REFUSALS_KEPT,
    UNKNOWN_KEPT,
    Boot,
    State,
    apply,
    begin,
    find,
)

LIMITS = progress_report.deadlines({})


def script(now: float, boot: str = "b0", node: str = "node0") -> ScriptGiven:
    return ScriptGiven(now, node, boot, "aa" * 32, now + 300, "1122334455667788", "02:00:00:00:00:01", node)


def after(*events: Event) -> State:
    state = begin(["node0", "node1"], 0.0)
    for event in events:
        state = apply(event, state)
    return state


def whole_boot() -> State:
    stages = [StageReached(10.0 + 5 * number, "node0", "b0", stage) for number, stage in enumerate(BOOT_STAGES[2:7])]
    return after(DhcpAsked(2.0, "node0", "BIOS"), DhcpAsked(4.0, "node0"), script(6.0), *stages)


def test_a_boot_begins_with_its_first_dhcp_packet() -> None:
    boot = whole_boot().nodes["node0"].boot
    assert boot is not None and boot.began == 2.0
    assert [reached.stage for reached in boot.reached] == list(BOOT_STAGES[:7])


def test_the_wait_for_an_image_is_part_of_the_boot() -> None:
    boot = after(DhcpAsked(2.0, "node0"), script(602.0)).nodes["node0"].boot
    assert boot is not None and boot.began == 2.0
    assert [(span.stage, span.seconds) for span in progress_report.trace(boot)] == [("dhcp", 0.0), ("script", 600.0)]


def test_power_on_is_the_beginning_when_it_is_known() -> None:
    state = after(Armed(1.0, "node0", "reprovision", powered_on=True), DhcpAsked(20.0, "node0"), script(25.0))
    boot = state.nodes["node0"].boot
    assert boot is not None and (boot.began, boot.because) == (1.0, "reprovision")


def test_a_trace_adds_up_to_the_whole_boot() -> None:
    boot = whole_boot().nodes["node0"].boot
    assert boot is not None
    spans = progress_report.trace(boot)
    assert sum(span.seconds for span in spans) == pytest.approx(boot.reached[-1].at - boot.began)
    assert progress_report.attributed_ratio(spans) == 1.0


def test_time_over_a_stage_that_was_not_seen_is_not_attributed() -> None:
    state = after(DhcpAsked(0.0, "node0"), script(10.0), StageReached(40.0, "node0", "b0", "image"))
    boot = state.nodes["node0"].boot
    assert boot is not None
    assert progress_report.attributed_ratio(progress_report.trace(boot)) == pytest.approx(10 / 40)


def test_stages_count_once_and_never_backwards() -> None:
    state = after(script(1.0), StageReached(5.0, "node0", "b0", "image"), StageReached(9.0, "node0", "b0", "kernel"))
    again = apply(StageReached(9.0, "node0", "b0", "image"), state)
    boot = again.nodes["node0"].boot
    assert boot is not None and [(reached.stage, reached.at) for reached in boot.reached] == [
        ("script", 1.0),
        ("image", 5.0),
    ]


@pytest.mark.parametrize(
    "stage", [stage for stage in BOOT_STAGES if stage not in ("dhcp", "engine_ready", "first_token")]
)
def test_every_stage_that_does_not_come_is_named(stage: BootStage) -> None:
    number = BOOT_STAGES.index(stage)
    events: list[Event] = [DhcpAsked(0.0, "node0")]
    if number > 1:
        events.append(script(0.0))
    events += [StageReached(0.0, "node0", "b0", before) for before in BOOT_STAGES[2:number]]
    node = after(*events).nodes["node0"]
    deadline = STAGES[stage].deadline_seconds
    assert progress_report.stuck("node0", node, deadline, LIMITS) is None
    late = progress_report.stuck("node0", node, deadline + 0.1, LIMITS)
    assert late is not None and late.stage == stage and late.cause == STAGES[stage].cause


def test_an_armed_node_that_stays_silent_is_named() -> None:
    node = after(Armed(100.0, "node0", "reprovision")).nodes["node0"]
    late = progress_report.stuck("node0", node, 100.0 + STAGES["dhcp"].deadline_seconds + 1, LIMITS)
    assert late is not None and late.stage == "dhcp"


def test_the_wait_for_a_deployment_is_no_stage_s_time() -> None:
    def boot_of(*events: Event) -> Boot:
        done = [StageReached(10.0 + number, "node0", "b0", stage) for number, stage in enumerate(BOOT_STAGES[2:9])]
        boot = after(script(0.0), *done, *events).nodes["node0"].boot
        assert boot is not None
        return boot

    ready = StageReached(660.0, "node0", "b0", "engine_ready")
    token = StageReached(665.0, "node0", "b0", "first_token")
    boot = boot_of(Deploying(700.0, "node0", 600.0), ready, token)
    assert [(span.stage, span.seconds) for span in progress_report.trace(boot)][-3:] == [
        ("idle", 584.0),
        ("engine_ready", 60.0),
        ("first_token", 5.0),
    ]
    assert progress_report.attributed_ratio(progress_report.trace(boot)) == 1.0
    # Another deployment later changes nothing of it, and one that began before the node was ready leaves no gap.
    later = boot_of(Deploying(700.0, "node0", 600.0), ready, token, Deploying(900.0, "node0", 800.0))
    assert progress_report.trace(later) == progress_report.trace(boot)
    early = boot_of(Deploying(700.0, "node0", 12.0), ready)
    assert "idle" not in [span.stage for span in progress_report.trace(early)]


def test_a_node_that_was_never_asked_for_is_not_late() -> None:
    assert progress_report.stuck("node0", after().nodes["node0"], 1e9, LIMITS) is None


def test_nobody_is_late_with_a_deployment_that_nobody_started() -> None:
    done = [StageReached(1.0, "node0", "b0", stage) for stage in BOOT_STAGES[2:9]]
    node = after(script(0.0), *done).nodes["node0"]
    assert progress_report.stuck("node0", node, 1e6, LIMITS) is None
    deployed = apply(Deploying(1e6, "node0", 1e6), after(script(0.0), *done)).nodes["node0"]
    late = progress_report.stuck("node0", deployed, 1e6 + STAGES["engine_ready"].deadline_seconds + 1, LIMITS)
    assert late is not None and late.stage == "engine_ready"


def test_the_newest_evidence_about_the_stage_is_the_cause() -> None:
    state = after(
        script(0.0),
        StageReached(1.0, "node0", "b0", "kernel"),
        StageReached(2.0, "node0", "b0", "initramfs"),
        Troubled(3.0, "node0", "image", "sha256 differs, try 1", "b0"),
        Troubled(9.0, "node0", "image", "sha256 differs, try 2", "b0"),
    )
    late = progress_report.stuck("node0", state.nodes["node0"], 1000.0, LIMITS)
    assert late is not None and late.cause == "sha256 differs, try 2"


def test_trouble_of_an_earlier_boot_is_no_cause() -> None:
    state = after(script(0.0), Troubled(1.0, "node0", "kernel", "old", "b0"), script(500.0, "b1"))
    late = progress_report.stuck("node0", state.nodes["node0"], 1000.0, LIMITS)
    assert late is not None and late.cause == STAGES["kernel"].cause


def test_one_boot_wins_and_the_others_lose_their_nonce() -> None:
    state = after(script(0.0, "b0"), script(1.0, "b1"), Enrolled(5.0, "node0", "b0", "key"))
    nonces = {boot.id: bool(boot.nonce) for boot in state.nodes["node0"].boots}
    assert nonces == {"b0": True, "b1": False}
    assert state.nodes["node0"].armed == ""


def test_a_blocked_node_loses_every_nonce() -> None:
    state = after(script(0.0), Blocked(1.0, "node0"))
    assert [boot.nonce for boot in state.nodes["node0"].boots] == [""]
    assert not apply(Armed(2.0, "node0", "reprovision"), state).nodes["node0"].blocked


def test_memory_is_bounded_whatever_is_sent() -> None:
    state = after()
    for number in range(500):
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        state = apply(UnknownAsked(float(number), mac), state)
        state = apply(Refused(float(number), "claim", "", f"10.0.{number >> 8}.{number & 255}", "malformed"), state)
        state = apply(script(float(number), f"b{number}"), state)
    assert (len(state.unknown), len(state.refusals)) == (UNKNOWN_KEPT, REFUSALS_KEPT)
    assert len(state.nodes["node0"].boots) == BOOTS_KEPT
    assert max(entry.last for entry in state.unknown.values()) == 499.0


def test_the_same_refusal_is_counted() -> None:
    state = after(*(Refused(float(number), "claim", "node0", "10.0.0.9", "late") for number in range(5)))
    assert [(refusal.reason, refusal.count) for refusal in state.refusals] == [("late", 5)]


def test_events_about_what_is_not_there_change_nothing() -> None:
    state = after(script(0.0))
    for event in (
        StageReached(1.0, "node0", "none", "kernel"),
        Enrolled(1.0, "node1", "b0", "key"),
        Blocked(1.0, "nobody"),
        Troubled(1.0, "nobody", "kernel", "x"),
        DhcpAsked(1.0, "nobody"),
    ):
        assert apply(event, state) == state


def test_what_is_not_an_event_is_an_error() -> None:
    nothing: Any = "boot"
    with pytest.raises(TypeError, match="str is no event"):
        apply(nothing, after())


def test_the_view_has_no_secret(tmp_path: object) -> None:
    state = whole_boot()
    boot = state.nodes["node0"].boot
    assert boot is not None
    shown = str(progress_report.view(state, 100.0, LIMITS))
    assert boot.nonce not in shown
    assert find(state, boot.id) is not None


def test_the_record_survives_a_restart(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path)) / "boot"
    state = after(script(0.0), UnknownAsked(1.0, "02:00:00:00:00:09"), Refused(2.0, "claim", "", "10.0.0.1", "late"))
    storage.write(folder, state)
    assert storage.read(folder) == state
    assert (folder / storage.FILE).stat().st_mode & 0o077 == 0
    kept = begin(["node0"], 9.0, storage.read(folder))
    assert kept.nodes["node0"] == state.nodes["node0"] and "node1" not in kept.nodes
    (folder / storage.FILE).write_text("{")
    assert storage.read(folder) is None


def test_every_stage_has_a_cause_and_a_deadline() -> None:
    assert tuple(STAGES) == BOOT_STAGES
    assert all(rules.deadline_seconds > 0 and rules.cause for rules in STAGES.values())
    deadlines = progress_report.deadlines({"image": 5.0})
    assert deadlines == {**{stage: rules.deadline_seconds for stage, rules in STAGES.items()}, "image": 5.0}
    assert replace(whole_boot().nodes["node0"], boots=()).boot is None
