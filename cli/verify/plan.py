"""The plan of the benchmark: which deployments, under which loads, with which faults, in which order.

Everything that is drawn hangs on the seed and the group's name alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cli.verify.groups import REPEATS, Block, Group, Part, Stage, Step, drawn, sweep, together
from cli.verify.loads import Load, draw
from cli.verify.strengths import KINDS, Fault, Kind

LINKS: tuple[Part, ...] = (("link_rate", None), ("link_delay", None))
ONE_NODE: tuple[Part, ...] = tuple(
    (kind, node) for kind in ("quota", "foreign", "bursts") for node in ("node0", "node1")
)
WHOLE: tuple[Part, ...] = (("foreign_all", None), ("api_server", None))
LIKELY: Mapping[str, tuple[Part, ...]] = {
    "tp2": (*LINKS, *ONE_NODE, *WHOLE),
    "pp2": (*LINKS, *ONE_NODE, *WHOLE),
    "replicas": (*ONE_NODE, WHOLE[0]),
    "single": WHOLE,
}
LOW_RATES = (0.4, 0.1, 1.6, 0.05)
SHORT = (0.4, 0.1, 1.6, 0.2)


def _tp2_links(rng: random.Random) -> list[Stage]:
    return [Stage("tp2", (
        Block(draw("mixed", rng), sweep("link_rate", repeats=REPEATS - 1)),
        Block(draw("answers", rng), sweep("link_delay", repeats=REPEATS - 1)),
        Block(draw("long", rng), (*sweep("link_rate", costs=SHORT), *sweep("link_delay", costs=SHORT))),
    ))]  # fmt: skip


def _tp2_links_more(rng: random.Random) -> list[Stage]:
    return [Stage("tp2", (
        Block(draw("prompts", rng), (*sweep("link_rate", repeats=REPEATS - 1), *sweep("link_delay", costs=SHORT))),
        Block(draw("crowd", rng), (*sweep("link_rate"), *sweep("link_delay", repeats=REPEATS - 1))),
        Block(draw("alone", rng), sweep("link_delay", costs=SHORT)),
    ))]  # fmt: skip


def _tp2_nodes(rng: random.Random) -> list[Stage]:
    one, two = _two(rng)
    return [Stage("tp2", (
        Block(draw("mixed", rng), sweep("quota", one, repeats=REPEATS - 1)),
        Block(draw(_any(rng), rng), sweep("foreign", two, repeats=REPEATS - 1)),
        Block(draw("mixed", rng), sweep("bursts", two, repeats=REPEATS - 1)),
    ))]  # fmt: skip


def _tp2_nodes_more(rng: random.Random) -> list[Stage]:
    one, two = _two(rng)
    return [Stage("tp2", (
        Block(draw(_any(rng), rng), (*sweep("quota", two), *sweep("foreign", one))),
        Block(draw("long", rng), (*sweep("quota", one, SHORT), *sweep("bursts", one, SHORT))),
        Block(draw("alone", rng), (*sweep("foreign", two, SHORT), *sweep("bursts", two, SHORT))),
    ))]  # fmt: skip


def _tp2_host(rng: random.Random) -> list[Stage]:
    return [Stage("tp2", (
        Block(draw("mixed", rng), (*sweep("foreign_all", repeats=REPEATS - 1), *sweep("low_rate", costs=LOW_RATES))),
        Block(draw("crowd", rng), (*sweep("api_server", repeats=REPEATS - 1), *sweep("foreign_all", costs=SHORT))),
    ))]  # fmt: skip


def _pp2_links(rng: random.Random) -> list[Stage]:
    return [Stage("pp2", (
        Block(draw("mixed", rng), sweep("link_rate", repeats=REPEATS - 1)),
        Block(draw("answers", rng), sweep("link_delay")),
        Block(draw("prompts", rng), sweep("link_rate", costs=SHORT)),
    ))]  # fmt: skip


def _pp2_nodes(rng: random.Random) -> list[Stage]:
    one, two = _two(rng)
    return [Stage("pp2", (
        Block(draw("crowd", rng), sweep("quota", one, repeats=REPEATS - 1)),
        Block(draw("mixed", rng), sweep("foreign", two, repeats=REPEATS - 1)),
        Block(draw("crowd", rng), sweep("bursts", one, SHORT)),
    ))]  # fmt: skip


def _pp2_host(rng: random.Random) -> list[Stage]:
    return [Stage("pp2", (
        Block(draw("mixed", rng), (*sweep("foreign_all"), *sweep("low_rate", costs=LOW_RATES))),
        Block(draw("alone", rng), (*sweep("quota", "node1", SHORT), *sweep("link_delay", costs=SHORT))),
    ))]  # fmt: skip


def _replicas_nodes(rng: random.Random) -> list[Stage]:
    one, two = _two(rng)
    return [Stage("replicas", (
        Block(draw("mixed", rng), sweep("quota", one, repeats=REPEATS - 1)),
        Block(draw("answers", rng), sweep("foreign", two, repeats=REPEATS - 1)),
        Block(draw("crowd", rng), sweep("bursts", one, repeats=REPEATS - 1)),
    ))]  # fmt: skip


def _replicas_host(rng: random.Random) -> list[Stage]:
    return [Stage("replicas", (
        Block(draw("mixed", rng), (*sweep("foreign_all", repeats=REPEATS - 1), *sweep("low_rate", costs=LOW_RATES))),
        Block(draw("prompts", rng), (*sweep("quota", "node1", SHORT), *sweep("foreign_all", costs=SHORT))),
        Block(draw("long", rng), sweep("foreign", "node0", SHORT)),
    ))]  # fmt: skip


def _single_host(rng: random.Random) -> list[Stage]:
    return [Stage("single", (
        Block(draw("mixed", rng), (*sweep("foreign_all", repeats=REPEATS - 1), *sweep("low_rate", costs=LOW_RATES))),
        Block(draw("answers", rng), sweep("api_server", repeats=REPEATS - 1)),
        Block(draw("prompts", rng), sweep("foreign_all", costs=SHORT)),
        Block(draw("long", rng), (*sweep("foreign_all", costs=SHORT), *sweep("low_rate", costs=(0.4, 1.6)))),
    ))]  # fmt: skip


def _limited(
    deployment: str,
    settings: Mapping[str, Any],
    kind: str,
    loads: Sequence[Load],
    runs: int,
    more: Sequence[Block] = (),
) -> Stage:
    """Return a deployment whose settings are a fault, under loads that the roomy one is recorded under as well."""
    fault = Fault(kind, float(next(iter(settings.values()) if kind != "cache" else iter((settings["mib"],)))))
    kept = {key: value for key, value in settings.items() if key != "mib"}
    return Stage(deployment, (*(Block(load, healthy=runs) for load in loads), *more), kept, (fault,))


def _slots(deployment: str) -> Callable[[random.Random], list[Stage]]:
    def make(rng: random.Random) -> list[Stage]:
        """Clients by clients: the more of them there are for the slots, the more they cost."""
        crowd, writing = draw("crowd", rng), draw("answers", rng)
        concurrency = max(crowd.concurrency, 8)
        loads = [Load(load.kind, clients, load.input_tokens, load.output_tokens) for load, clients in (
            (crowd, concurrency), (writing, 8), (crowd, 6),
        )]  # fmt: skip
        few, many = rng.choice((2, 3)), rng.choice((5, 6))
        share = 2 if deployment == "replicas" else 1
        # A slow node beside too few slots: alone under the roomy settings, at the same strengths.
        quotas = (0.5, 0.15) if deployment != "replicas" else ()
        alone = sweep("quota", "node1", quotas)
        both = tuple(Step(step.parts, step.costs, again=True) for step in alone)
        beside = tuple(Block(loads[0], steps) for steps in (alone, both) if steps)
        roomy = (*(Block(load, healthy=4) for load in loads), *beside[:1])
        return [
            Stage(deployment, roomy),
            _limited(deployment, {"max_num_seqs": max(many // share, 1)}, "slots", loads, 3, beside[1:]),
            _limited(deployment, {"max_num_seqs": max(few // share, 1)}, "slots", loads, 2),
        ]

    return make


def _slots_again(deployment: str) -> Callable[[random.Random], list[Stage]]:
    def make(rng: random.Random) -> list[Stage]:
        loads = [Load("crowd", clients, 64 + 16 * rng.randrange(4), 24) for clients in (6, 8, 10)]
        many = rng.choice((4, 7))
        return [
            Stage(deployment, tuple(Block(load, healthy=4) for load in loads)),
            _limited(deployment, {"max_num_seqs": many}, "slots", loads, REPEATS),
        ]

    return make


def _budgets(deployment: str) -> Callable[[random.Random], list[Stage]]:
    def make(rng: random.Random) -> list[Stage]:
        loads = [draw("prompts", rng), draw("mixed", rng), draw("long", rng)]
        small, large = rng.choice((32, 48, 64)), rng.choice((96, 128, 192))
        return [
            Stage(deployment, tuple(Block(load, healthy=4) for load in loads)),
            _limited(deployment, {"max_num_batched_tokens": small}, "budget", loads, 3),
            _limited(deployment, {"max_num_batched_tokens": large}, "budget", loads[:2], REPEATS),
        ]

    return make


def _caches(deployment: str) -> Callable[[random.Random], list[Stage]]:
    def make(rng: random.Random) -> list[Stage]:
        # A token takes 8 KiB of one rank's cache, 4 KiB of each of two: 8 MiB hold about three, or six, such requests.
        loads = [Load("cache", clients, 192 + 32 * rng.randrange(3), 64) for clients in (6, 9, 12)]
        ranks = 2 if deployment == "tp2" else 1
        small, large = rng.choice((8, 10)) // ranks, rng.choice((12, 14, 16)) // ranks
        return [
            Stage(deployment, tuple(Block(load, healthy=3) for load in loads), {"max_model_len": 512}),
            *(
                _limited(
                    deployment,
                    {"max_model_len": 512, "kv_cache_memory": f"{mebibytes} MiB", "mib": mebibytes},
                    "cache", loads, runs,
                )
                for mebibytes, runs in ((small, 3), (large, 3))
            ),
        ]  # fmt: skip

    return make


def _two(rng: random.Random) -> tuple[str, str]:
    one, two = rng.sample(("node0", "node1"), 2)
    return one, two


def _any(rng: random.Random) -> str:
    return rng.choice(("mixed", "prompts", "answers", "crowd"))


def _together_tp2(rng: random.Random) -> list[Stage]:
    one, two = _two(rng)
    return [Stage("tp2", (
        Block(draw("mixed", rng), together(("link_rate", None), ("quota", one))),
        Block(draw("answers", rng), together(("link_delay", None), ("foreign", two))),
    ))]  # fmt: skip


def _together_others(rng: random.Random) -> list[Stage]:
    return [
        Stage("pp2", (Block(draw("mixed", rng), together(("link_rate", None), ("quota", "node1"))),)),
        Stage("single", (Block(draw("mixed", rng), together(("foreign_all", None), ("api_server", None))),)),
    ]


def _random(deployment: str) -> Callable[[random.Random], list[Stage]]:
    def make(rng: random.Random) -> list[Stage]:
        kinds = rng.sample(("mixed", "prompts", "answers", "crowd", "long", "alone"), 3)
        blocks = tuple(Block(draw(kind, rng), drawn(LIKELY[deployment], 8, rng)) for kind in kinds)
        return [Stage(deployment, blocks)]

    return make


# In the order of what they are worth: an early end leaves a record that has some of everything.
_MAKERS: Mapping[str, Callable[[random.Random], list[Stage]]] = {
    "tp2-links": _tp2_links,
    "tp2-nodes": _tp2_nodes,
    "tp2-slots": _slots("tp2"),
    "tp2-host": _tp2_host,
    "single-budgets": _budgets("single"),
    "pp2-links": _pp2_links,
    "pp2-nodes": _pp2_nodes,
    "replicas-nodes": _replicas_nodes,
    "tp2-caches": _caches("tp2"),
    "single-host": _single_host,
    "tp2-together": _together_tp2,
    "tp2-random": _random("tp2"),
    "tp2-budgets": _budgets("tp2"),
    "tp2-links-more": _tp2_links_more,
    "replicas-host": _replicas_host,
    "single-slots": _slots_again("single"),
    "tp2-nodes-more": _tp2_nodes_more,
    "pp2-random": _random("pp2"),
    "pp2-host": _pp2_host,
    "replicas-random": _random("replicas"),
    "together-others": _together_others,
    "replicas-slots": _slots("replicas"),
    "single-caches": _caches("single"),
    "tp2-random-more": _random("tp2"),
    "pp2-slots": _slots_again("pp2"),
    "single-random": _random("single"),
}
# Kinds with a place of their own in the groups above; any other is swept by itself at the end.
PLACED = frozenset({kind for parts in LIKELY.values() for kind, _ in parts} | {"low_rate"})
ROUNDS = 2


def _other(kind: Kind) -> Callable[[random.Random], list[Stage]]:
    def make(rng: random.Random) -> list[Stage]:
        node = rng.choice(("node0", "node1")) if kind.place == "node" else None
        return [Stage("tp2", (Block(draw("mixed", rng), sweep(kind.name, node, repeats=REPEATS - 1)),))]

    return make


def groups(seed: int, rounds: int = ROUNDS) -> list[Group]:
    """Return every group, the most valuable first; each round draws loads and places anew."""
    found = []
    others = {f"tp2-{kind.name}": _other(kind) for kind in KINDS.values() if kind.name not in PLACED}
    for number in range(1, rounds + 1):
        for name, make in {**_MAKERS, **others}.items():
            whole = name if number == 1 else f"{name}-{number}"
            found.append(Group(whole, tuple(make(random.Random(f"{seed}/{whole}")))))
    return found


def starts() -> Group:
    """Return the starts: warm ones, and some whose nodes read their files from a slow disk.

    All nodes of all labs share one page cache: beside other labs nothing is read, so they are in no part of the others.
    """
    slow = {"tp2": (4e6, 8e6, 16e6), "replicas": (6e6,), "single": (8e6, 16e6)}
    return Group("starts", tuple(
        Stage(deployment, (), starts=(None, None, *(Fault("cold_disk", rate) for rate in rates), None))
        for deployment, rates in slow.items()
    ))  # fmt: skip
