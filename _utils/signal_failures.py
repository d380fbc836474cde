"""
Name the signal that ended a program, which leaves no exception. Rules as data.
"""

from collections.abc import Sequence

from failure_reasons import Rank, Rule

LOG = "cluster logs NODE -n 200"
ON_NODE = "cluster salt -- MINION cmd.run "

# Reported by whoever started the process: its name, and the signal as a negative exit code.
_DEAD = (
    r"Failed core proc\(s\): \{{.*?'(?P<who>[\w.-]+)': -(?P<signal>{0})\b",
    r"Worker proc (?P<who>\S+) died unexpectedly \(exit code: -(?P<signal>{0})\)",
    r"(?:Child |Worker )?[Pp]rocess (?P<who>\S+) (?:died|exited|terminated)\b.*?(?:exit ?code|signal)[^\d-]*-?(?P<signal>{0})\b",
    r"Worker (?P<who>\w+) pid \d+ died, exit code: -(?P<signal>{0})\b",
    r"worker (?P<who>\S+ )?died \(-(?P<signal>{0})\)",
    r"exitcode *: -(?P<signal>{0})\b",
)
# What a shell reports of its child.
_SHELL = r"(?:\S+: line \d+: +\d+ )?"
_KILLED = (
    _SHELL + r"Killed\b",
    r"(?P<who>\S+) (?:was )?(?:terminated|killed) by signal (?:9|SIGKILL)",
    r"was killed by signal: Killed",
    r"Signal (?P<signal>9) \(SIGKILL\) received",
)
# systemd, Slurm and Ray of a process under them.
_KILLED_UNDER = (
    r"\S+\.(?:service|scope): (?:Main process exited, code=killed, status=9|Failed with result 'oom-kill'|A process of this unit "
    r"has been killed by the OOM killer)",
    r"(?:slurmstepd: )?error: Detected \d+ oom[_-]kill events?",
    r"(?:\(raylet\) )?(?:\S+:\d+: )?\d+ Workers \(tasks / actors\) killed due to memory pressure",
    r"OOMKilled\b",
)


def _dead(signals: str) -> tuple[str, ...]:
    return tuple(pattern.format(signals) for pattern in _DEAD)


RULES = (
    Rule(
        "killed",
        Rank.UNNAMED,
        (*_dead("9"), *_KILLED, *_KILLED_UNDER),
        "[{who} was killed by signal 9: ]most likely the kernel ended it because the node or its control group ran out of "
        "memory (a process that is killed leaves no message)",
        (ON_NODE + "'dmesg | grep -i -E \"killed process|out of memory\"'",),
    ),
    Rule(
        "illegal_instruction",
        Rank.UNNAMED,
        (*_dead("4"), r"Fatal Python error: Illegal instruction", _SHELL + r"Illegal instruction"),
        "[{who} ended with signal 4: ]the engine was built for a processor with instructions that this one does not have",
        (ON_NODE + "'lscpu'",),
    ),
    Rule(
        "bus_error",
        Rank.UNNAMED,
        (*_dead("7"), r"Fatal Python error: Bus error", _SHELL + r"Bus error"),
        "[{who} ended with signal 7: ]a bus error: /dev/shm is full, or a file that was mapped got shorter while it was read",
        (ON_NODE + "'df -h /dev/shm'",),
    ),
    Rule(
        "segmentation_fault",
        Rank.UNNAMED,
        (
            *_dead("11"),
            r"Fatal Python error: Segmentation fault",
            r"!+ *Segfault encountered",
            _SHELL + r"Segmentation fault(?! from GPU)",
            r"\*\*\* SIGSEGV",
            r"(?:malloc|free|realloc|munmap_chunk)\(\): ",
            r"(?:double free or corruption|corrupted (?:size|double-linked)|\*\*\* stack smashing)",
        ),
        "[{who} ended with signal 11: ]a crash in compiled code (segmentation fault): a driver, a library or a kernel that "
        "does not fit this machine",
        (LOG,),
    ),
    Rule(
        "aborted",
        Rank.AFTERMATH,
        (
            *_dead("6"),
            r"Fatal Python error: Aborted",
            _SHELL + r"Aborted(?: +\(core dumped\))?(?:$| )",
            r"\*\*\* SIGABRT",
        ),
        "[{who} ended with signal 6: ]compiled code gave up (abort); the lines before it in the log say of what",
        (LOG,),
    ),
    Rule(
        "terminated",
        Rank.AFTERMATH,
        _dead("15|2"),
        "[{who}: ]it was asked to end[ (signal {signal})]: somebody, or the program that started it, stopped it",
        (LOG,),
    ),
    Rule(
        "died",
        Rank.SYMPTOM,
        (r"Worker proc (?P<who>\S+) died unexpectedly", r"Engine core proc (?P<who>\S+) died unexpectedly"),
        "{who} ended without a message: it was killed, or crashed in compiled code",
        (ON_NODE + "'dmesg | tail -n 30'",),
    ),
)

# Signal 9 where the kernel's count of processes that it ended for want of memory is known, and did not grow.
KILLED_FROM_OUTSIDE = Rule(
    "killed_from_outside",
    Rank.UNNAMED,
    (*_dead("9"), *_KILLED),
    "[{who} was killed by signal 9: ]from outside, and not for want of memory (the kernel counted no process here that it "
    "ended for that): a person, or a program such as earlyoom, sent the signal",
    (ON_NODE + "'journalctl -n 50'",),
)


def without_memory_kills(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return rules for a program on a node whose kernel ended none of its processes for want of memory."""
    found: list[Rule] = []
    for rule in rules:
        found += [KILLED_FROM_OUTSIDE, rule] if rule.name == "killed" else [rule]
    return tuple(found)
