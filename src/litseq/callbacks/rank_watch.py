"""The threads in which ranks tell each other what they do; see ``RankMonitor``."""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["Hub", "RankStatus", "RankWatch", "Spoke"]

_LINE_LIMIT = 2**16  # bytes; whoever sends more without a line's end is no rank of ours
_GRACE = 5.0  # seconds in which all ranks may fail of the same cause, each with its own message
_BROKEN = re.compile("gloo|nccl|connection|peer|timed out", re.IGNORECASE)
_BACKWARD = "torch/autograd/graph.py"  # which also reduces the gradients
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no other


@dataclass
class RankStatus:
    """What a rank does.

    Attributes:
        rank: Its number.
        host: Its machine.
        pid: Its process.
        doing: In words.
        step: Optimizer steps done.
        marks: Places passed that all ranks pass in the same order.
        ticks: All signs of life, the batches of an evaluation too, which ranks need not share.
        where: What its main thread executes.
        waits: Whether that is something in which it may wait for the others.
    """

    rank: int
    host: str
    pid: int
    doing: str = "starting"
    step: int = 0
    marks: int = 0
    ticks: int = 0
    where: str = ""
    waits: bool = False

    def __str__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        return (
            f"rank {self.rank} (host {self.host}, pid {self.pid}; {self.doing}, step "
            f"{self.step}{where})"
        )


class _Connection:
    """Lines of JSON over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(5)  # of a side that is stopped and no longer reads
        self.sock = sock
        self.rank = -1  # until it has said who it is
        self._rest = b""

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, **message: Any) -> None:  # noqa: ANN401
        """Sends; a connection that is broken shows where it is read."""
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come; None: the other side is gone."""
        try:
            data = self.sock.recv(_LINE_LIMIT)
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _LINE_LIMIT:
            return None
        try:
            return [dict(json.loads(line)) for line in lines]
        except ValueError:
            return None

    def close(self) -> None:
        self.sock.close()


class RankWatch(threading.Thread):
    """The thread of one rank: says what its rank does, and listens."""

    def __init__(self, status: RankStatus, timeout: float, exit_code: int) -> None:
        super().__init__(name="RankMonitor", daemon=True)
        self.status, self.timeout, self.exit_code = status, timeout, exit_code
        self.interval = min(1.0, timeout / 10)
        self._leaving = threading.Event()
        self._failure = ""
        self._misses = False
        self._main = threading.main_thread().ident

    def leave(self) -> None:
        """Says good-bye, so that nobody takes this rank for dead."""
        self._leaving.set()
        self.join(10)

    def fail(self, error: BaseException) -> None:
        """Tells the others why this rank ends, unless it ends because it misses one of them.

        A rank that is missed is named by the thread, which then ends the process; that comes a
        little later than the error of the broken connection.
        """
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, RuntimeError) and _BROKEN.search(what):
            self._misses = True
            self.join(_GRACE + 2 * self.interval)
        else:
            self._failure = what[:500]

    def describe(self) -> dict[str, Any]:
        """The status, with what the main thread executes."""
        frame = sys._current_frames().get(self._main or 0)
        if frame is not None:
            code, path = frame.f_code, Path(frame.f_code.co_filename)
            self.status.where = f"{path.name}:{frame.f_lineno} {code.co_name}"
            self.status.waits = path.match(_BACKWARD) or "distributed" in str(path)
        return asdict(self.status)

    def end(self, reason: str) -> NoReturn:
        """Writes one line and ends the process, whatever its main thread waits for."""
        # not by logging or sys.stderr, whose locks a thread that hangs may hold
        line = f"litseq: error: {reason}; rank {self.status.rank} ends.\n"
        os.write(2, line.encode(errors="replace"))
        os._exit(self.exit_code)


class Spoke(RankWatch):
    """The thread of every rank but zero."""

    def __init__(self, address: tuple[str, int], token: str, *options: Any) -> None:  # noqa: ANN401
        super().__init__(*options)
        self._hub = _Connection(socket.create_connection(address, timeout=30))
        self._hub.send(token=token, rank=self.status.rank)

    def run(self) -> None:
        """Reports to rank zero until this rank leaves or has to end."""
        zero, heard, beat = "rank 0", time.monotonic(), 0.0
        while not self._leaving.is_set():
            if time.monotonic() >= beat:
                self._hub.send(status=self.describe(), failure=self._failure)
                beat = time.monotonic() + self.interval
            readable, _, _ = select.select([self._hub], [], [], self.interval)
            if readable:
                messages = self._hub.receive()
                if messages is None:
                    self.end(f"{zero} is gone")
                heard = time.monotonic()
                for message in messages:
                    if "bye" in message:  # it has done its part, or failed
                        if not message["bye"]:
                            self._leaving.wait()
                        elif self._misses or not self._leaving.wait(_GRACE):
                            self.end(f"{zero} failed: {message['bye']}")
                        break
                    if "reason" in message:
                        self.end(message["reason"])
                    zero = message["zero"]
            elif time.monotonic() - heard > self.timeout:
                self.end(f"{zero} has not answered for {self.timeout:.0f} s")
        self._hub.send(bye=True, failure=self._failure)
        self._hub.close()


@dataclass
class _Seen:
    """What rank zero knows of a rank: its status, since when, and when it was last heard."""

    status: RankStatus
    since: float
    heard: float


class Hub(RankWatch):
    """The thread of rank zero: it decides."""

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        world_size: int,
        launcher: Any,  # noqa: ANN401
        *options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*options)
        self._listener, self._token, self._launcher = listener, token, launcher
        self._missing = set(range(world_size))
        self._spokes: list[_Connection] = []
        self._seen: dict[int, _Seen] = {}
        self._failed: tuple[float, str] | None = None

    def run(self) -> None:
        """Hears all ranks, until this one leaves or has to end."""
        start, beat = time.monotonic(), 0.0
        while not self._leaving.is_set():
            if time.monotonic() >= beat:
                self._hear(RankStatus(**self.describe()))
                for spoke in self._spokes:
                    spoke.send(zero=str(self.status))
                beat = time.monotonic() + self.interval
            watched: list[Any] = [self._listener, *self._spokes]
            for ready in select.select(watched, [], [], self.interval)[0]:
                if ready is self._listener:
                    self._spokes.append(_Connection(self._listener.accept()[0]))
                else:
                    self._read(ready)
            self._check(start)
        for spoke in self._spokes:
            spoke.send(bye=self._failure)
            spoke.close()
        self._listener.close()

    def _read(self, spoke: _Connection) -> None:
        messages = spoke.receive()
        if messages is None:
            self._drop(spoke)
            if spoke.rank in self._seen:
                self._say(f"{self._seen[spoke.rank].status} is gone")
            return
        for message in messages:
            if spoke.rank < 0:
                if not secrets.compare_digest(str(message.get("token")), self._token):
                    self._drop(spoke)
                    return
                spoke.rank = int(message["rank"])
                continue
            if "status" in message:
                self._hear(RankStatus(**message["status"]))
            if message["failure"] and self._failed is None:
                status = self._seen[spoke.rank].status
                self._failed = time.monotonic(), f"{status} failed: {message['failure']}"
            if "bye" in message:
                self._seen.pop(spoke.rank, None)
                self._drop(spoke)
                return

    def _drop(self, spoke: _Connection) -> None:
        self._spokes.remove(spoke)
        spoke.close()

    def _hear(self, status: RankStatus) -> None:
        now, seen = time.monotonic(), self._seen.get(status.rank)
        self._missing.discard(status.rank)
        if seen is None or seen.status.ticks != status.ticks:
            self._seen[status.rank] = _Seen(status, now, now)
        else:
            seen.status, seen.heard = status, now

    def _check(self, start: float) -> None:
        now = time.monotonic()
        if self._failed is not None and (self._misses or now - self._failed[0] > _GRACE):
            self._say(self._failed[1])
        if self._missing and now - start > self.timeout:
            self._say(f"rank {min(self._missing)} has not come for {self.timeout:.0f} s")
        if all(now - seen.since < self.timeout for seen in self._seen.values()):
            return
        # the first to wait was not the first to hang
        stuck = [seen for seen in self._seen.values() if now - seen.since > self.timeout / 2]

        def suspicion(seen: _Seen) -> tuple[bool, int, bool]:
            return seen.heard > now - self.timeout / 2, seen.status.marks, seen.status.waits

        # The others wait for it in a place that it has not reached. Who is silent hangs as a whole.
        worst = min(stuck, key=suspicion)
        reason = f"{worst.status} has made no progress for {now - worst.since:.0f} s"
        for seen in stuck:
            if seen is not worst and suspicion(seen) == suspicion(worst):
                reason += f", nor has {seen.status}"
        self._say(reason)

    def _say(self, reason: str) -> NoReturn:
        for spoke in self._spokes:
            spoke.send(reason=reason)
        if hasattr(self._launcher, "kill"):  # Lightning's own children, the one that hangs among
            time.sleep(self.interval)  # them; the others may write their lines first
            self._launcher.kill(_KILL)
        self.end(reason)
