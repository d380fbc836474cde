"""Batches folded into what the control node knows: pure, with a clock that is handed in."""

from dataclasses import replace
from functools import reduce
from typing import Any

import pytest

from bottleneck.telemetry import cluster_state, cluster_view
from bottleneck.telemetry.cluster_view import Arrived, Asked, Event, Failed, Rejected, State, Tick

SETTINGS = cluster_view.Settings(
    senders={"node0": "host0", "node1": "host1"},
    capacities={"node0": {"direct": 1e9}, "node1": {"direct": 1e9}},
    window_seconds=10.0,
    lost_after_seconds=5.0,
    send_interval_seconds=0.5,
    acknowledge_interval_seconds=10.0,
)
START = 1000.0


def batch(node: str, sequence: int, boot: str = "one", moment: float | None = None, **more: Any) -> dict[str, Any]:
    start = START + sequence if moment is None else moment
    samples = [{"t": start + index / 10, "cpu": {"0": [sequence, 0, 0, 0, 0, 0]}} for index in range(10)]
    return {
        "node": node,
        "boot": boot,
        "sequence": sequence,
        "t0": start,
        "t1": start + 0.9,
        "samples": samples,
        "engine": None,
        "sampler": {"cpu_s": 0.1, "dropped": 0},
        **more,
    }


def arrived(node: str, sequence: int, mark: int | None = None, now: float | None = None, **more: Any) -> Arrived:
    found = batch(node, sequence, **more)
    at = found["t1"] + 0.01 if now is None else now
    return Arrived(at, found, True, sequence if mark is None else mark)


def fold(*events: Event, state: State | None = None) -> State:
    return reduce(
        lambda known, event: cluster_state.apply(event, known), events, state or cluster_state.begin(SETTINGS, START)
    )


def announced(*events: Event, state: State) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for event in events:
        state = cluster_state.apply(event, state)
        found += state.announcements
    return found


def test_applying_an_event_leaves_the_old_state_as_it_was() -> None:
    before = cluster_state.begin(SETTINGS, START)
    copy = replace(before)
    cluster_state.apply(arrived("node0", 1), before)
    assert before == copy


def test_a_node_is_up_once_it_is_seen() -> None:
    state = fold(arrived("node0", 1))
    assert state.nodes["node0"].up is True
    assert state.nodes["node1"].up is None
    assert state.nodes["node0"].delay_seconds == pytest.approx(0.01)
    assert state.nodes["node0"].stored == 1


def test_the_newest_sample_keeps_what_only_the_first_one_has() -> None:
    found = batch("node0", 1)
    found["samples"][0] |= {
        "mem": {"total": 5, "available": 3},
        "psi": {"cpu": [1.0, 0.0], "memory": [2.0, 0.0]},
        "workers": {"tp2-0": {"cpu_user_s": 1.0, "rss_bytes": 7}},
    }
    found["samples"][-1] |= {"psi": {"cpu": [1.5, 0.0]}, "workers": {"tp2-0": {"cpu_user_s": 2.0}}}
    sample = fold(Arrived(1002.0, found, True, 1)).nodes["node0"].sample
    assert sample["mem"] == {"total": 5, "available": 3}
    assert sample["psi"] == {"cpu": [1.5, 0.0], "memory": [2.0, 0.0]}
    assert sample["workers"] == {"tp2-0": {"cpu_user_s": 2.0, "rss_bytes": 7}}


# -- acknowledgements


def test_everything_in_order_is_acknowledged() -> None:
    state = fold(*(arrived("node0", number) for number in range(1, 6)))
    assert cluster_state.acknowledgement(state, "node0", "one") == {"boot": "one", "sequence": 5, "missing": []}


def test_a_gap_is_named_and_closes_when_it_is_filled() -> None:
    state = fold(arrived("node0", 1), arrived("node0", 2), arrived("node0", 5, 2), arrived("node0", 7, 2))
    assert cluster_state.acknowledgement(state, "node0", "one") == {"boot": "one", "sequence": 2, "missing": [3, 4, 6]}
    state = fold(arrived("node0", 3, 3), arrived("node0", 4, 5), arrived("node0", 6, 7), state=state)
    assert cluster_state.acknowledgement(state, "node0", "one") == {"boot": "one", "sequence": 7, "missing": []}


def test_after_a_restart_the_store_says_where_to_go_on() -> None:
    state = fold(arrived("node0", 620, 500))
    stored = cluster_state.acknowledgement(state, "node0", "one")
    assert stored is not None
    assert (stored["sequence"], stored["missing"][0], len(stored["missing"])) == (500, 501, cluster_state.MOST_MISSING)


def test_a_number_beyond_reason_costs_no_time() -> None:
    state = fold(arrived("node0", 1), arrived("node0", (1 << 53) - 1, 1, moment=1002.0))
    stored = cluster_state.acknowledgement(state, "node0", "one")
    assert stored == {"boot": "one", "sequence": 1, "missing": list(range(2, 102))}


def test_nothing_is_reported_of_a_boot_that_is_not_the_present_one() -> None:
    state = fold(arrived("node0", 1), arrived("node0", 1, boot="two", moment=1003.0))
    assert cluster_state.acknowledgement(state, "node0", "one") is None
    assert cluster_state.acknowledgement(state, "node0", "two") == {"boot": "two", "sequence": 1, "missing": []}
    assert cluster_state.acknowledgement(state, "node0", "") is None
    assert cluster_state.acknowledgement(state, "node9", "one") is None


def test_a_late_batch_of_a_life_that_is_over_changes_nothing_but_the_count() -> None:
    state = fold(arrived("node0", 9, 9), arrived("node0", 1, boot="two"), arrived("node0", 10, 10))
    assert state.nodes["node0"].boot == "two"
    assert state.nodes["node0"].sequence == 1
    assert state.nodes["node0"].stored == 3


def test_a_clock_that_is_set_back_does_not_hide_new_batches() -> None:
    state = fold(arrived("node0", 1), arrived("node0", 2, moment=10.0, now=1003.0))
    assert state.nodes["node0"].boundary == pytest.approx(10.9)


def test_a_batch_that_came_again_is_counted() -> None:
    state = fold(arrived("node0", 1), Arrived(1003.0, batch("node0", 1), False, 1))
    assert (state.nodes["node0"].stored, state.nodes["node0"].repeated) == (1, 1)


def test_a_node_that_does_not_ask_is_known_by_a_job_now_and_then() -> None:
    state = fold(*(arrived("node0", number) for number in range(1, 62)))
    assert cluster_state.to_acknowledge(state, 1060.0) == {}
    assert cluster_state.to_acknowledge(state, 1062.0) == {"node0": {"boot": "one", "sequence": 61, "missing": []}}
    assert cluster_state.to_acknowledge(fold(Asked(1050.0, "node0"), state=state), 1062.0) == {}
    assert cluster_state.to_acknowledge(fold(Asked(1061.0, "node0", by_job=True), state=state), 1062.0) == {}
    # One that has fallen silent would not take a job either.
    assert cluster_state.to_acknowledge(state, 1090.0) == {}
    assert fold(Asked(1.0, "nobody"), state=state).nodes == state.nodes


# -- heartbeats


def test_a_silent_node_is_lost_once_and_back_once() -> None:
    state = fold(arrived("node0", 1))
    last_batch = state.nodes["node0"].last_batch
    state = fold(Tick(last_batch + 5.0), state=state)
    assert state.announcements == ()
    state = fold(Tick(last_batch + 5.1), state=state)
    assert state.announcements == ((cluster_view.LOST_TAG, {"node": "node0", "since": last_batch}),)
    assert state.nodes["node0"].up is False
    assert announced(Tick(last_batch + 6.0), Tick(last_batch + 7.0), state=state) == []
    found = announced(arrived("node0", 20, 1), arrived("node0", 21, 1), state=state)
    assert [tag for tag, _ in found] == [cluster_view.BACK_TAG]
    assert found[0][1]["silent_seconds"] == pytest.approx(19.0)


def test_a_node_that_stays_lost_is_named_again_less_and_less_often() -> None:
    state = fold(arrived("node0", 1))
    lost = state.nodes["node0"].last_batch + 5.1
    times = []
    for second in range(2500):
        state = fold(Tick(lost + second), state=state)
        times += [(second, data["times"]) for tag, data in state.announcements if tag == cluster_view.STILL_LOST_TAG]
    assert times == [(30, 2), (90, 3), (210, 4), (450, 5), (930, 6), (1530, 7), (2130, 8)]
    state = fold(arrived("node0", 2), state=state)
    assert state.nodes["node0"].up is True


def test_nobody_is_lost_while_the_control_node_itself_stood_still() -> None:
    state = fold(arrived("node0", 1), Tick(START + 2.0))
    woken = START + 60.0
    assert announced(Tick(woken), Tick(woken + 4.9), state=state) == []
    assert [tag for tag, _ in announced(Tick(woken), Tick(woken + 4.9), Tick(woken + 5.1), state=state)] == [
        cluster_view.LOST_TAG
    ]


def test_a_node_nobody_seen_is_not_lost() -> None:
    assert announced(Tick(START + 100.0), state=cluster_state.begin(SETTINGS, START)) == []


def test_after_a_restart_known_nodes_are_expected_back_for_a_while() -> None:
    state = cluster_state.begin(SETTINGS, START, ["node0", "gone"])
    assert "gone" not in state.nodes
    assert announced(Tick(START + 24.0), state=state) == []
    assert [tag for tag, _ in announced(Tick(START + 26.0), state=state)] == [cluster_view.LOST_TAG]
    assert announced(arrived("node0", 7, 7), Tick(START + 9.0), state=state) == []


# -- windows


def serve(state: State, first: int, last: int, nodes: tuple[str, ...] = ("node0", "node1")) -> tuple[State, list[Any]]:
    """Let batches come for a while, with a tick after each second."""
    found: list[Any] = []
    for number in range(first, last + 1):
        for node in nodes:
            state = cluster_state.apply(arrived(node, number), state)
            found += state.announcements
        state = cluster_state.apply(Tick(START + number + 0.95), state)
        found += state.announcements
    return state, found


def test_windows_follow_each_other_without_gap_or_overlap() -> None:
    _, found = serve(cluster_state.begin(SETTINGS, START), 3, 41)
    windows = [data for tag, data in found if tag == cluster_view.WINDOW_TAG]
    assert [(window["start"], window["end"]) for window in windows] == [
        (1010.0, 1020.0),
        (1020.0, 1030.0),
        (1030.0, 1040.0),
    ]
    assert all(window["nodes"] == ["node0", "node1"] for window in windows)
    assert [window["window"] for window in windows] == ["1010", "1020", "1030"]


def test_a_window_closes_as_soon_as_every_node_is_past_its_end() -> None:
    state, found = serve(cluster_state.begin(SETTINGS, START), 10, 19)
    assert found == []
    _, found = serve(state, 20, 20)
    assert [tag for tag, _ in found] == [cluster_view.WINDOW_TAG]


def test_a_window_waits_for_a_slow_node_but_not_for_ever() -> None:
    state, _ = serve(cluster_state.begin(SETTINGS, START), 10, 18)
    state, found = serve(state, 19, 22, nodes=("node0",))
    assert [tag for tag, _ in found] == []
    state = cluster_state.apply(Tick(1023.5), state)
    assert [(tag, data.get("nodes")) for tag, data in state.announcements if tag == cluster_view.WINDOW_TAG] == [
        (cluster_view.WINDOW_TAG, ["node0", "node1"])
    ]


def test_a_silent_cluster_closes_no_windows() -> None:
    state, _ = serve(cluster_state.begin(SETTINGS, START), 10, 20)
    found = announced(*(Tick(1021.0 + second) for second in range(100)), state=state)
    tags = [tag for tag, _ in found]
    assert tags[:2] == [cluster_view.LOST_TAG, cluster_view.LOST_TAG]
    assert set(tags[2:]) == {cluster_view.STILL_LOST_TAG}


def test_a_clock_that_jumps_ahead_does_not_make_a_thousand_windows() -> None:
    state, _ = serve(cluster_state.begin(SETTINGS, START), 10, 12)
    state = cluster_state.apply(Tick(START + 1e8), state)
    assert len(state.announcements) <= 2
    assert state.window_start is not None and state.window_start <= START + 1e8 < state.window_start + 20


# -- what is counted


def test_refused_batches_are_counted() -> None:
    assert fold(Rejected(START), Rejected(START)).rejected == 2


def test_errors_that_were_caught_are_counted() -> None:
    assert fold(Failed(START), Failed(START), Failed(START)).failures == 3


EXIT = {"worker": "tp2-0", "pid": 7, "kind": "program"}


def test_the_end_of_a_worker_asks_for_one_look_however_many_processes_end() -> None:
    state = fold(arrived("node0", 1))
    events = [arrived("node0", number, exits=[EXIT, EXIT], now=1010.0 + number / 10) for number in (2, 3, 4)]
    assert announced(*events, state=state) == [
        (cluster_view.EXITED_TAG, {"node": "node0", "workers": ["tp2-0"], "what": "ended", "at": pytest.approx(1002.9)})
    ]
    assert fold(*events, state=state).nodes["node0"].exits == 6
    again = arrived("node0", 5, exits=[EXIT], now=1020.0)
    assert [tag for tag, _ in announced(*events, again, state=state)] == [cluster_view.EXITED_TAG] * 2


def test_an_end_that_was_stored_before_is_no_news() -> None:
    state = fold(arrived("node0", 1))
    repeated = replace(arrived("node0", 2, exits=[EXIT]), new=False)
    assert announced(repeated, state=state) == []


def reading(moment: float, running: int, tokens: int) -> dict[str, Any]:
    metrics = {
        'vllm:num_requests_running{engine="0"}': running,
        'vllm:generation_tokens_total{engine="0"}': tokens,
    }
    return {"t": moment, "metrics": metrics}


@pytest.mark.parametrize(
    ("running", "grows", "asks"), [(2, 0, True), (0, 0, False), (2, 1, False)], ids=["stalled", "idle", "works"]
)
def test_an_engine_with_requests_that_makes_nothing_asks_for_a_look(running: int, grows: int, asks: bool) -> None:
    events = [
        arrived("node0", number, engine=reading(START + number, running, 100 + grows * number))
        for number in range(1, 14)
    ]
    tags = [tag for tag, _ in announced(*events, state=fold()) if tag == cluster_view.STALLED_TAG]
    assert tags == [cluster_view.STALLED_TAG] * asks


def test_a_standstill_that_the_sampler_saw_asks_for_a_look_at_once_and_again_later() -> None:
    still = [
        arrived("node0", number, engine={**reading(START + number, 2, 100), "still_s": 1.0 + number})
        for number in range(1, 14)
    ]
    found = [data for tag, data in announced(*still, state=fold()) if tag == cluster_view.STALLED_TAG]
    assert [each["seconds"] for each in found] == [2.0, 11.0]
    idle = arrived("node0", 1, engine={**reading(START + 1, 0, 100), "still_s": 60.0})
    assert not announced(idle, state=fold())


@pytest.mark.parametrize("standstill", [float("inf"), float("nan"), "x", None, [], -5.0])
def test_a_standstill_that_cannot_be_is_none(standstill: object) -> None:
    odd = arrived("node0", 1, engine={**reading(START + 1, 2, 100), "still_s": standstill})
    assert not announced(odd, state=fold())


def test_a_process_that_was_stopped_is_told_from_one_that_ended() -> None:
    stopped, cut = {**EXIT, "kind": "stopped"}, {**EXIT, "kind": "cut"}
    events = [arrived("node0", 2, exits=[stopped]), arrived("node0", 3, exits=[stopped, EXIT], now=1020.0)]
    found = announced(*events, state=fold(arrived("node0", 1)))
    assert [data["what"] for _, data in found] == ["was stopped", "ended or was stopped"]
    assert fold(*events).nodes["node0"].exits == 1
    found = announced(arrived("node0", 2, exits=[cut]), state=fold(arrived("node0", 1)))
    assert [data["what"] for _, data in found] == ["lost its link"]
    assert fold(arrived("node0", 1), arrived("node0", 2, exits=[cut])).nodes["node0"].exits == 0


def test_what_was_refused_for_good_is_given_up_and_named_once() -> None:
    state = fold(arrived("node0", 1), *[Rejected(START, ("node0", "boot", 2))] * 3, Rejected(START, ("other", "b", 1)))
    assert cluster_state.refused(state, "node0", "boot") == [2]
    assert cluster_state.refused(state, "node0", "former") == cluster_state.refused(state, "other", "b") == []
    many = fold(*(Rejected(START, ("node0", "boot", number)) for number in range(1, 500)))
    assert len(many.nodes["node0"].refused) == cluster_state.MOST_REFUSED
