"""Every number of the diagnosis: value, unit, what it decides, where it is from, what it was set on.

Rules read them as `thresholds.NAME` when they run, so that one can be moved and every recorded case asked
again.
Physics is not here: efficiencies and costs of kernels and messages are in `bottleneck.performance`. Beside these, the
rules hold no numeric literal but 0, 1 and 2 (a test reads the source): one half is a majority.
"""

from __future__ import annotations

DEVELOPMENT = "recorded cases of the development part"
LAB = "the lab's recorded runs (tests/data/runs)"
SERVERS = "simulated accelerator servers and recorded H200 scenarios"
DEFINITION = "a convention; nothing to fit"


class Number(float):
    """A threshold: a float that knows what it is for."""

    unit: str
    decides: str
    source: str
    set_on: str

    def __new__(cls, value: float, unit: str, decides: str, source: str, set_on: str) -> Number:
        """Make one; `decides` is a sentence for the page about thresholds."""
        number = super().__new__(cls, value)
        number.unit, number.decides, number.source, number.set_on = unit, decides, source, set_on
        return number


# Observations.
FULL = Number(
    0.85,
    "1",
    "From this share on a KV cache, a link, a core counts as full.",
    "vLLM preempts when a running request finds no block",
    LAB,
)
CACHE_ROOMY = Number(
    0.7, "1", "Below this usage the KV cache counts as having room.", "some blocks are always part filled", LAB
)
STALL_GAP = Number(
    2.5,
    "medians",
    "A gap between tokens this long is a wait for another request's prompt.",
    "decode steps vary by half",
    LAB,
)
AT_WORK_CORES = Number(
    0.08,
    "cores",
    "A second in which workers use more than this is one of work.",
    "an idle engine's loops use 0.02",
    LAB,
)
PLATEAU_BAND = Number(
    0.25,
    "1",
    "Rates this near to a link's usual highest are one plateau.",
    "spread of a shaped link's rate in 0.1 s",
    LAB,
)
PLATEAU_QUANTILE = Number(
    0.9, "1", "The quantile of a link's rate, by bytes, that its plateau is around.", "robust maximum", LAB
)
OLD_CEILING_AWAKE = Number(
    0.5, "1", "Workers awake for less of a link's plateau wait for the link.", "a majority; stated as it is tuned", LAB
)
BEYOND = Number(
    1.1,
    "1",
    "Measurements this far beyond a ceiling say that the ceiling is wrong.",
    "probes repeat within 10 %",
    SERVERS,
)
SLOWER = Number(
    0.8,
    "1",
    "A ceiling below this share of its peers' makes a node slow, if the intervals are apart.",
    "probes' spread",
    LAB,
)
COVERED = Number(0.8, "1", "Samples that cover less of the interval are said to be missing.", DEFINITION, DEFINITION)
QUOTA_BELOW = Number(
    0.95, "1", "A quota below this share of the promised cores restricts a node.", "rounding of quotas", LAB
)
HOT_CELSIUS = Number(
    83.0,
    "°C",
    "From this temperature on a falling clock is heat's.",
    "NVIDIA and AMD throttle from 83 to 95 °C",
    "datasheets",
)
POWER_LIMIT = Number(
    0.97, "1", "From this share of its power limit on a falling clock is power's.", "control loops hover", SERVERS
)

# How far measurements carry.
SLIGHT = Number(
    0.9, "1", "Confidence is multiplied with it for a slight doubt.", "calibrated together with the two below", LAB
)
NOTABLE = Number(0.75, "1", "... for a notable doubt.", "see SLIGHT", LAB)
GRAVE = Number(0.5, "1", "... for a grave doubt.", "see SLIGHT", LAB)
FEW_REQUESTS = Number(4, "requests", "Fewer than this are said to be few.", DEFINITION, DEFINITION)

# Attribution.
LEFT_TO_ONE = Number(
    0.7,
    "1",
    "Share of unexplained step time that is one node's own work.",
    "user CPU time misses page faults, caches",
    LAB,
)
LAUNCHES_HIDDEN = Number(
    0.75,
    "1",
    "Without graphs, kernels that fill less of a step hide beneath their launches.",
    "CUDA streams overlap",
    SERVERS,
)
LAUNCHES_LEFT = Number(
    0.2,
    "1",
    "Without graphs, a step full of kernels still leaves this much to launches.",
    "efficiency's spread",
    SERVERS,
)
HOST_UNSURE = Number(
    0.25,
    "1",
    "A host's share of a decode step between this and one minus this may be slow kernels.",
    "kernels' spread",
    SERVERS,
)
IMPLAUSIBLE = Number(
    0.08, "1", "Kernels below this share of the ceilings are not believed.", "worst kernel seen: 0.15", SERVERS
)

HEAD_LOOP = Number(
    0.01, "s", "The longest that ranks wait for the head's loop in one step.", "healthy runs: a few ms", DEVELOPMENT
)

# Causes.
IDLE = Number(
    0.3, "1", "Idle for this share of the time or more: the load is weighed as the limit.", "gaps of a closed loop", LAB
)
BUBBLE_ASLEEP = Number(
    0.25,
    "1",
    "A bubble needs even the busiest stage to sleep this share of the busy time.",
    "messages cost a tenth",
    LAB,
)
API_SERVER_EASY = Number(
    0.6, "1", "An API server process that needs less of a core is not what limits.", "one thread, bursts", LAB
)
API_SERVER_DELAYED = Number(
    0.3, "1", "One that waits this much longer than its node's others is held back.", "else 0.05", DEVELOPMENT
)

STUCK_SECONDS = Number(
    10.0,
    "s",
    "Requests that run for so long without a token or a step are stuck.",
    "chosen: a step with a long prompt takes a few seconds",
    DEFINITION,
)

# Arbitration.
CARD_APART = Number(
    0.15,
    "1",
    "Cards of ranks that do the same work differ by less than this in time with a kernel, reads, power.",
    "two H200: a foreign kernel 30 % of the time costs 1 %, 70 % 17 %; a rank paused a fifth of it 24 to 29 %",
    "made-up samples; two pairs of H100: alike cards 0.03 apart, stages 0.14, a foreign kernel 70 % of the time 0.2",
)
LEAST_SHOWN = Number(0.05, "1", "A smaller share of an output token's time is not listed.", DEFINITION, DEFINITION)
LEAST_SCORE = Number(
    0.2, "1", "A smaller share is not called a bottleneck.", "unexplained time is a tenth", DEVELOPMENT
)
MENDABLE = Number(
    0.12,
    "1",
    "From this share on, what works or is set wrong counts whole; what the hardware limits, half.",
    "false names",
    DEVELOPMENT,
)
TIE = Number(0.12, "1", "Two limits nearer than this share of the larger are `balanced`.", "error of the parts", LAB)
CANNOT_TELL = Number(
    0.35, "1", "Two causes that the measurements confuse, nearer than this, get no name.", "kernels' spread", SERVERS
)
LEAST_CONFIDENCE = Number(0.25, "1", "Below this margin times quality it is `inconclusive`.", DEFINITION, DEVELOPMENT)
MARGIN_WEIGHT = Number(
    0.6, "1", "How much of confidence is the lead over the runner-up.", "fit to right and wrong", DEVELOPMENT
)
ENOUGH = Number(
    0.4, "1", "From this share on the size of a cause takes nothing from its confidence.", "fit as above", DEVELOPMENT
)
NARROW_RISK = Number(
    0.2, "1", "How much of confidence a margin of nothing takes away.", "fit to right and wrong", DEVELOPMENT
)
MOST_CONFIDENCE = Number(0.97, "1", "No answer is surer.", DEFINITION, DEFINITION)

STAYS = {
    "CACHE_ROOMY": "apart from FULL, so that a cache that is neither full nor roomy names no cause of waiting",
    "AT_WORK_CORES": "live windows: where no reading of the engine says when it worked",
    "PLATEAU_BAND": "an old ceiling of a link; runs of the tests have one",
    "PLATEAU_QUANTILE": "as PLATEAU_BAND",
    "OLD_CEILING_AWAKE": "as PLATEAU_BAND",
    "QUOTA_BELOW": "a quota that is a node's size makes no straggler; no run of the record is named by one near it",
    "COVERED": "no run of the record lacks samples; damaged runs of the tests do",
    "HOT_CELSIUS": "no run of the record is hot; the vendors' number",
    "POWER_LIMIT": "no run of the record is at its power limit",
    "NOTABLE": "no run of the record is damaged: it weighs doubts about measurements",
    "GRAVE": "as NOTABLE",
    "FEW_REQUESTS": "no run of the record has so few; a note and its doubt",
    "LAUNCHES_HIDDEN": "the record has no accelerator; scenarios of an H200 have",
    "CARD_APART": "the record has no cards; made-up samples have",
    "LAUNCHES_LEFT": "as LAUNCHES_HIDDEN",
    "HOST_UNSURE": "as LAUNCHES_HIDDEN",
    "IMPLAUSIBLE": "as LAUNCHES_HIDDEN",
    "CANNOT_TELL": "as LAUNCHES_HIDDEN: slow kernels or a slow host",
    "HEAD_LOOP": "parts wait for the loop from wait for messages, which only their shares show",
    "API_SERVER_EASY": "twice as large it takes 27 right answers and adds 20 false names: a fifth is far from that",
    "LEAST_SHOWN": "twice as large it takes five right answers: runners-up that are not listed",
    "LEAST_SCORE": "twice as large six runs are named otherwise: an answer has to be of some size",
    "MENDABLE": "a half of it takes a right answer, twice as large 17 runs are named otherwise",
    "STUCK_SECONDS": "chosen, not fitted: no run of the record hangs; scenarios of a stuck engine do",
    "NARROW_RISK": "names no cause: how sure an answer is said to be",
    "MOST_CONFIDENCE": "as NARROW_RISK",
}
"""Why a number stays with which a fifth more or less names no run of the record otherwise."""


def all_numbers() -> dict[str, Number]:
    """Return every threshold by name, in the order above."""
    return {name: value for name, value in globals().items() if isinstance(value, Number)}


def replaced(name: str, value: float) -> Number:
    """Return a threshold's twin with another value, for asking what hangs on it.

    Parameters
    ----------
    name : str
        Name of a threshold in this module.
    value : float
        The other value, in the same unit.

    Raises
    ------
    KeyError
        For a name that this module does not have.
    """
    old = all_numbers()[name]
    return Number(value, old.unit, old.decides, old.source, old.set_on)
