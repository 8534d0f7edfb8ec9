"""Run N hosts on one machine, each with fake CPU devices, and restart them like a pod's launcher.

    python launch/local_multihost.py --processes=2 --devices=4 -- \
        python -m bert_jax.train --config=configs/tiny_cpu.py --workdir=/tmp/tiny

The processes find each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, the code path of a pod.
All of them restart when one ends with status 75 (preempted, or lost another host) or is killed. `--kill_every` kills
one or all hosts at random times with SIGTERM or SIGKILL: weeks on spot machines in minutes.
"""

import argparse
import dataclasses
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

RESTART = 75  # EX_TEMPFAIL of sysexits.h
USAGE_ERROR = 2
KILLED = (-signal.SIGKILL, -signal.SIGTERM)
POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Kill:
    """A kill: hosts, signal, and seconds after the start."""

    after: float
    number: signal.Signals
    hosts: tuple[int, ...]


class Killer:
    """Sampler of kills: half of them SIGTERM, half of them of all hosts."""

    def __init__(self, *, every: float, limit: int, processes: int, seed: int):
        """Kill once per start, on average `every` seconds after it, up to `limit` times (0: no limit)."""
        self._every, self._limit, self._processes = every, limit, processes
        self._random = random.Random(seed)
        self.count = 0

    def sample(self) -> Kill | None:
        """Return the kill for the next start, if any."""
        if not self._every or (self._limit and self.count >= self._limit):
            return None
        hosts = tuple(range(self._processes))
        return Kill(
            after=self._random.uniform(0, 2 * self._every),
            number=self._random.choice((signal.SIGTERM, signal.SIGKILL)),
            hosts=self._random.choice((hosts, (self._random.choice(hosts),))),
        )


class Hosts:
    """The processes of one start."""

    def __init__(self, command: Sequence[str], *, processes: int, devices: int):
        """Start all processes, with a new port."""
        port = free_port()
        self._start_time = time.monotonic()
        self._printers: list[threading.Thread] = []
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **variables(index, processes=processes, devices=devices, port=port)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # only the launcher sends signals
            )
            for index in range(processes)
        ]
        for index, process in enumerate(self.processes):
            assert process.stdout is not None
            printer = threading.Thread(target=show, args=(index, process.stdout), daemon=True)
            printer.start()
            self._printers.append(printer)

    def run(self, kill: Kill | None, *, killer: Killer, grace: float, stop: threading.Event) -> list[int]:
        """Wait until all hosts end; return their statuses, or only those that failed first.

        After one host fails, the others get `grace` seconds to end, and none after a SIGKILL.
        """
        first: list[int] = []
        deadline = float("inf")
        while True:
            statuses = [process.poll() for process in self.processes]
            failed = [status for status in statuses if status]
            if failed and not first:
                first = failed
                hurry = -signal.SIGKILL in failed
                deadline = min(deadline, time.monotonic() + (0 if hurry else grace))
            if stop.is_set():
                self._signal(signal.SIGTERM, range(len(self.processes)))
                stop.clear()
            if kill is not None and time.monotonic() - self._start_time > kill.after:
                killer.count += 1
                which = "all hosts" if len(kill.hosts) == len(self.processes) else f"host {kill.hosts[0]}"
                say(f"kill {killer.count}: {kill.number.name} to {which} {kill.after:.1f} s after the start")
                self._signal(kill.number, kill.hosts)
                kill = None
            if None not in statuses:
                break
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL, range(len(self.processes)))
            time.sleep(POLL_SECONDS)
        for printer in self._printers:
            printer.join(timeout=5)
        return first or [0] * len(self.processes)

    def _signal(self, number: signal.Signals, hosts: Sequence[int]) -> None:
        for index in hosts:
            if self.processes[index].poll() is None:
                self.processes[index].send_signal(number)


def variables(index: int, *, processes: int, devices: int, port: int) -> dict[str, str]:
    """Return the environment of one host."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags.strip(),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def show(index: int, lines: IO[str]) -> None:
    """Print a host's output; lines of the first host have no prefix."""
    for line in lines:
        if "[Gloo] Rank" in line or "peer ranks" in line:
            continue  # messages of the CPU collectives
        print(line if index == 0 else f"[host {index}] {line}", end="", flush=True)


def say(text: str) -> None:
    """Print a line of the launcher."""
    print(f"[launcher] {text}", flush=True)


def launch(arguments: argparse.Namespace) -> int:
    """Start the hosts, restart them while that may help, and return the exit status."""
    stop = threading.Event()
    stopped: list[int] = []

    def forward(number: int, frame: object) -> None:
        del frame
        stopped.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    killer = Killer(
        every=arguments.kill_every, limit=arguments.kills, processes=arguments.processes, seed=arguments.seed
    )
    starts = 0
    while True:
        starts += 1
        hosts = Hosts(arguments.command, processes=arguments.processes, devices=arguments.devices)
        statuses = hosts.run(killer.sample(), killer=killer, grace=arguments.grace, stop=stop)
        if not any(statuses):
            say(f"finished: {starts} start{'s' if starts > 1 else ''}, {killer.count} kills")
            return 0
        if stopped:
            return 128 + stopped[0]
        killed = any(status in KILLED for status in statuses)
        # After a kill, others may end with any status. Otherwise, any other status is an error that a restart repeats.
        if not killed and any(status not in (RESTART, -signal.SIGABRT) for status in statuses):
            status = next(status for status in statuses if status not in (RESTART, -signal.SIGABRT))
            say(f"not restarted: a host ended with status {status}")
            return status if status > 0 else 128 - status
        if starts > arguments.max_restarts:
            say(f"not restarted: all {arguments.max_restarts} restarts are used up (--max_restarts)")
            return RESTART
        say(f"restarting ({starts} of at most {arguments.max_restarts}): statuses {statuses}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags and the command after `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="number of hosts (2)")
    parser.add_argument("--devices", type=int, default=1, help="fake CPU devices per host (1)")
    parser.add_argument("--max_restarts", type=int, default=10, help="maximum number of restarts (10)")
    parser.add_argument(
        "--grace", type=float, default=60, help="seconds for the other hosts to end after one failed (60)"
    )
    parser.add_argument(
        "--kill_every", type=float, default=0, help="mean seconds from a start to a random kill (0: no kills)"
    )
    parser.add_argument("--kills", type=int, default=0, help="maximum number of kills (0: no limit)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random kills")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, then exit")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command to run, after --")
    parsed = parser.parse_args(arguments)
    parsed.command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    for is_wrong, text in (
        (not parsed.command, "no command: write it after --, for example -- python -m bert_jax.train --config=..."),
        (parsed.processes < 1, f"--processes={parsed.processes}: must be at least 1"),
        (parsed.devices < 1, f"--devices={parsed.devices}: must be at least 1"),
        (parsed.max_restarts < 0, f"--max_restarts={parsed.max_restarts}: must not be negative"),
    ):
        if is_wrong:
            print(f"error: {text}", file=sys.stderr)
            sys.exit(USAGE_ERROR)
    return parsed


def main() -> int:
    """Launch the hosts, or print their commands."""
    arguments = parse(sys.argv[1:])
    if not arguments.dry_run:
        return launch(arguments)
    for index in range(arguments.processes):
        environment = variables(index, processes=arguments.processes, devices=arguments.devices, port=8476)
        print(
            " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
            shlex.join(arguments.command),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
