"""Start load generators without waiting for their imports: a process that has vLLM loaded forks one for each request.

Run by the engine's own Python, so it imports the standard library alone beside vLLM. What a generator does and measures
is `vllm bench serve` as ever; only the seconds before it, in which Python reads vLLM, are spent once.

    python generator_server.py SOCKET

A request is one line of JSON on the Unix socket: `arguments` (of `vllm`), `directory`, `log`, `environment`. The answer
is `{"pid": N}`, and once that process has ended `{"status": N}`. The server ends, and its generators with it, when its
standard input does: whoever started it is gone then.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any


def preload() -> None:
    """Import what `vllm bench serve` imports before it reads its arguments."""
    from importlib import import_module

    for name in (
        "vllm.entrypoints.cli.main",
        "vllm.entrypoints.cli.benchmark.main",
        "vllm.entrypoints.cli.collect_env",
        "vllm.entrypoints.cli.launch",
        "vllm.entrypoints.cli.openai",
        "vllm.entrypoints.cli.run_batch",
        "vllm.entrypoints.cli.serve",
        "vllm.benchmarks.serve",
        "vllm.tokenizers",
        "transformers.models.auto.tokenization_auto",
    ):
        # Versions differ in which of them they have; what is missing here is imported by the generator itself.
        with contextlib.suppress(ImportError):
            import_module(name)


def become_generator(request: dict[str, Any]) -> None:
    """Turn this process, a fresh child, into `vllm` with the request's arguments.

    Parameters
    ----------
    request : dict[str, Any]
        The generator's ``directory`` and ``log`` as absolute paths, its ``environment``, and its ``arguments`` after
        `vllm`.

    Raises
    ------
    OSError
        When folder or log cannot be used.
    ImportError
        When the process is not one of vLLM's environment.
    """
    os.setsid()
    os.chdir(request["directory"])
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = request["arguments"]
    # By its path: this file is run by itself, with no package around it.
    runpy.run_path(str(Path(__file__).with_name("reconnecting.py")), run_name="__main__")


class Server:
    """The loop: requests in, the end of generators out."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        self._wakeup, writing = os.pipe()
        for descriptor in (self._wakeup, writing):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._running: dict[int, socket.socket] = {}

    def serve(self) -> None:
        """Take requests until standard input ends."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._start(self._listener.accept()[0])
                elif key.fileobj == self._wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup, 4096)
                    self._reap()
                elif not os.read(0, 4096):
                    self._end()
                    return

    def _start(self, connection: socket.socket) -> None:
        connection.settimeout(10.0)
        try:
            with connection.makefile("rb") as lines:
                request = json.loads(lines.readline())
        except (OSError, ValueError):
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            self._listener.close()
            signal.set_wakeup_fd(-1)
            code = 1
            try:
                become_generator(request)
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(bool(error.code))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        self._running[pid] = connection
        self._answer(connection, {"pid": pid})

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._running.pop(pid, None)
            if connection is not None:
                self._answer(connection, {"status": os.waitstatus_to_exitcode(status)})
                connection.close()

    def _end(self) -> None:
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    @staticmethod
    def _answer(connection: socket.socket, document: dict[str, int]) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(document).encode() + b"\n")


def main() -> None:
    """Load vLLM, say so, and serve."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # Whoever started this reads one word there; what vLLM says while it is read, beside cards, is for people.
    answers = os.dup(1)
    os.dup2(2, 1)
    preload()
    os.dup2(answers, 1)
    os.close(answers)
    server = Server(str(path))
    print("ready", flush=True)
    try:
        server.serve()
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
