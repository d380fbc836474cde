"""Runs one command on the control node and ends it when the laptop is gone.

    python3 -I -S -c SUPERVISOR MARK LIFELINE PATH ARGUMENT...

The laptop sends this text along with each command, so it needs nothing there but Debian's
python3, and is always of the laptop's version. It must stay small and import little: it
starts once per command.

On stderr it says `MARK pid NUMBER` before the command starts and `MARK exit STATUS` after
it ended; the laptop takes both out again. The second line is what tells a command that
ended with status 255 from a connection that was lost, which ssh reports as 255 too.

The command is the leader of its own session. A signal to the supervisor goes to that whole
session's process group. When nobody reads the command's output any more, or the lifeline
(stdin, where the command does not want it) ends, the laptop is gone: then the group is
asked to end as by Ctrl-C, given time for its clean-up, and in the end killed.
"""

import os
import select
import signal
import sys

PATIENCE_SECONDS = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


def say(mark: str, text: str) -> None:
    """Write one line for the laptop."""
    try:  # noqa: SIM105 (contextlib takes longer to import than all of this)
        os.write(2, f"{mark} {text}\n".encode())
    except OSError:
        pass  # nobody is there to read it


def start(argv: list[str], lifeline: bool) -> int:
    """Start the command in a session of its own; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        # Python ignores these, and a program inherits what is ignored.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *FORWARDED):
            signal.signal(number, signal.SIG_DFL)
        if lifeline:
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        os.write(2, f"{argv[0]}: command not found\n".encode())
        os._exit(127)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(126)


def send(pid: int, number: int) -> None:
    """Send a signal to the command's whole group."""
    try:  # noqa: SIM105 (the same)
        os.killpg(pid, number)
    except OSError:
        pass  # it has not made its group yet, or has none any more


def wait(pid: int, lifeline: bool) -> None:
    """Wait until the command ends; end it when the laptop is gone."""
    ended = os.pidfd_open(pid)
    watched = select.poll()
    watched.register(ended, select.POLLIN)
    for descriptor in (1, 2):
        watched.register(descriptor, 0)  # that its reader is gone shows as an error
    if lifeline:
        watched.register(0, select.POLLIN)
    while True:
        events = dict(watched.poll())
        if ended in events:
            return
        if 0 in events and not events[0] & (select.POLLERR | select.POLLHUP) and os.read(0, 4096):
            continue
        if events:
            break
    last = select.poll()
    last.register(ended, select.POLLIN)
    for number, patience in PATIENCE_SECONDS:
        send(pid, number)
        if last.poll(patience * 1000):
            break
    send(pid, signal.SIGKILL)  # what it left in its group


def main() -> None:
    """Start the command, wait for it, say how it ended."""
    mark, has_lifeline, path, *argv = sys.argv[1:]
    lifeline = has_lifeline == "1"
    if path:
        os.environ["PATH"] = f"{path}:{os.environ.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pid = start(argv, lifeline)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: send(pid, number))
    say(mark, f"pid {os.getpid()}")
    wait(pid, lifeline)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 128 - code if code < 0 else code
    say(mark, f"exit {code}")
    sys.exit(code)


if __name__ == "__main__":
    main()
