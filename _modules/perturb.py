"""
Slow one resource of this node by a known amount, for a limited time.

What is slowed is put back by whoever comes first: the one who asked (``undo``, or the next
``set``), or the dead-man timer, a process of its own on this node that undoes everything
once nobody has renewed the deadline. The way back is written down before the way there is
taken, so that neither a crash of the driver, nor of the minion, nor a lost connection to the
control node leaves a node slow.

The steps themselves are plain data (``actuator.plan``), so that the timer needs no Salt.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time

DIRECTORY = "/run/cluster/perturb"
UNIT = "perturb-timer"
LEAST_SECONDS, MOST_SECONDS = 1.0, 900.0
PROGRAM_DEADLINE_SECONDS = 5.0
TIMER_DEADLINE_SECONDS = 15.0


def __virtual__():
    return "perturb" if sys.platform == "linux" else (False, "perturb needs tc and control groups")


def set(changes, seconds=30.0):
    """
    Put everything back that is not asked for, do what is, and let it last ``seconds``.

    CLI Example:

    .. code-block:: bash

        salt node1 perturb.set '[{"actuator": "cpu_speed", "slowdown": 2}]' seconds=20

    changes
        list of changes, each with its ``actuator`` and what ``actuator.plan`` takes for it, or such
        lists by minion id; an empty one: put everything back, but stay armed
    seconds
        until the dead-man timer undoes it, unless it is set again or renewed
    """
    seconds = _seconds(seconds)
    if isinstance(changes, dict):
        changes = changes.get(__opts__["id"], [])
    plans = [__salt__["actuator.plan"](change, _directory()) for change in changes]
    _arm(seconds)
    with _locked(_directory()):
        state = _read(_directory())
        wanted = {_place(plan["change"]): plan["change"] for plan in plans}
        _undo([entry for entry in state["applied"] if _place(entry["change"]) not in wanted], _directory(), state)
        state["deadline"] = _now() + seconds
        held = {_place(entry["change"]): entry for entry in state["applied"]}
        for place, change in wanted.items():
            entry = held.get(place)
            if entry and entry["change"] == change:
                continue
            # Made anew: the first plan saw what was slowed then. The way back leads to what was there before all.
            plan = __salt__["actuator.plan"](change, _directory())
            if entry is None:
                entry = {"before": plan["before"], "undo": plan["undo"]}
                state["applied"].append(entry)
            entry["change"] = change
            _write(_directory(), state)
            _perform(plan["apply"])
        _write(_directory(), state)
    return status()


def renew(seconds=30.0):
    """
    Move the deadline to ``seconds`` from now; return False when there is nothing left to renew.

    CLI Example:

    .. code-block:: bash

        salt node1 perturb.renew 30
    """
    seconds = _seconds(seconds)
    with _locked(_directory()):
        state = _read(_directory())
        if state["deadline"] is None:
            return False
        state["deadline"] = _now() + seconds
        _write(_directory(), state)
    return True


def undo():
    """
    Put everything back now; return what it was.

    CLI Example:

    .. code-block:: bash

        salt '*' perturb.undo
    """
    if not os.path.isdir(_directory()):
        return []
    with _locked(_directory()):
        state = _read(_directory())
        changes = [entry["change"] for entry in state["applied"]]
        _undo(list(state["applied"]), _directory(), state)
        _forget(_directory())
    return changes


def status():
    """
    Return what is slowed now, and for how many seconds it stays so without a renewal.

    CLI Example:

    .. code-block:: bash

        salt '*' perturb.status
    """
    state = _read(_directory())
    left = None if state["deadline"] is None else round(state["deadline"] - _now(), 3)
    return {
        "armed": state["deadline"] is not None and _is_timer_alive(_directory()),
        "seconds_left": left,
        "applied": [{"change": entry["change"], "before": entry["before"]} for entry in state["applied"]],
    }


def _directory():
    return __opts__.get("cluster_perturb_directory", DIRECTORY)


def _place(change):
    """Return what a change acts on: two changes of one place are one change after the other."""
    return "/".join([change["actuator"], str(change.get("interface") or change.get("name") or "")])


def _seconds(value):
    seconds = float(value)
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise ValueError(f"seconds={value}: expected {LEAST_SECONDS:g} to {MOST_SECONDS:g}")
    return seconds


def _arm(seconds):
    """Have the timer run before anything is slowed."""
    os.makedirs(_directory(), mode=0o755, exist_ok=True)
    with _locked(_directory()):
        state = _read(_directory())
        state["deadline"] = max(state["deadline"] or 0.0, _now() + seconds + TIMER_DEADLINE_SECONDS)
        _write(_directory(), state)
    deadline = time.monotonic() + TIMER_DEADLINE_SECONDS
    program = [sys.executable, os.path.abspath(__file__.removesuffix("c")), _directory()]
    while not _is_timer_alive(_directory()):
        if time.monotonic() > deadline:
            raise RuntimeError("the dead-man timer did not start: nothing was slowed (see supervise.status)")
        # One that is just ending still counts as running: ask again.
        __salt__["supervise.start"](UNIT, program, {"PYTHONDONTWRITEBYTECODE": "1"})
        time.sleep(0.05)


# What the timer shares with the module: no Salt below this line -------------------------------


def _now():
    """Return seconds since boot, suspended time included: a deadline is a deadline."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _path(directory, name="state.json"):
    return os.path.join(directory, name)


@contextlib.contextmanager
def _locked(directory):
    os.makedirs(directory, mode=0o755, exist_ok=True)
    descriptor = os.open(_path(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(directory):
    try:
        with open(_path(directory), encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return {"deadline": None, "applied": []}


def _write(directory, state):
    partial = _path(directory, f"state.{os.getpid()}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, _path(directory))


def _forget(directory):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(directory))


def _undo(entries, directory, state):
    """Put entries back, the last one first; one that fails does not keep the others from it."""
    problems = []
    for entry in reversed(entries):
        try:
            _perform(entry["undo"])
        except (OSError, RuntimeError) as error:
            problems.append(str(error))
            continue
        state["applied"].remove(entry)
        _write(directory, state)
    if problems:
        raise RuntimeError(f"could not be put back: {'; '.join(problems)}")


def _perform(operations):
    """Do steps that are plain data; every one of them may be done twice."""
    for kind, *arguments in operations:
        {"run": _run, "write": _write_file, "control": _control, "start": _start, "remove": _remove}[kind](*arguments)


def _run(argv):
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(finished.stderr or finished.stdout).strip()}")


def _write_file(path, text):
    # No O_CREAT: a kernel's file that is not there must fail, not become a file.
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, str(text).encode())
    finally:
        os.close(descriptor)


def _control(path, text):
    """Tell a program what to do through its control file; it lives as long as the file."""
    partial = f"{path}.{os.getpid()}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(str(text))
    os.replace(partial, path)


def _start(path, argv):
    """Start the program of a control file unless it runs; wait until it says that it works."""
    if _holder(path) is None:
        with open(f"{path}.log", "wb") as log:
            subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, close_fds=True
            )
    deadline = time.monotonic() + PROGRAM_DEADLINE_SECONDS
    while _holder(path) is None:
        if time.monotonic() > deadline:
            with open(f"{path}.log", encoding="utf-8", errors="replace") as log:
                said = log.read().strip().splitlines()
            raise RuntimeError(f"{argv[1]} does not work: {said[-1] if said else 'it said nothing'}")
        time.sleep(0.01)


def _remove(path):
    """End the program of a control file: take the file away, and insist when it does not end."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    deadline = time.monotonic() + PROGRAM_DEADLINE_SECONDS
    while (holder := _holder(path)) is not None:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, 9)
        time.sleep(0.01)


def _holder(path):
    """Return the process id of the program that holds a control file's lock, or None."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.read(descriptor, 32).decode()
        # The program writes its id when it works.
        return int(said) if said.strip().isdigit() else None
    finally:
        os.close(descriptor)
    return None


def _is_timer_alive(directory):
    return _holder(_path(directory, "timer")) is not None


def _timer(directory):
    """Be the dead-man timer: wait for the deadline, put everything back, end."""
    import signal

    # Told to stop, it does its duty first.
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.append(True))
    held = os.open(_path(directory, "timer.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    os.ftruncate(held, 0)
    os.write(held, str(os.getpid()).encode())
    while True:
        with _locked(directory):
            state = _read(directory)
            if state["deadline"] is None or asked or _now() >= state["deadline"]:
                try:
                    _undo(list(state["applied"]), directory, state)
                    _forget(directory)
                    # Let go while the other lock is held: who arms next finds no timer and starts one.
                    os.close(held)
                    return
                except RuntimeError as error:
                    print(error, flush=True)
                    state["deadline"] = _now() + 1.0
                    _write(directory, state)
                    asked.clear()
        time.sleep(0.1)


if __name__ == "__main__":
    _timer(sys.argv[1])
