"""Fifty clients at once: at most one job runs and sixteen wait, the others are refused within
seconds, the page answers all the time, and no client sees the seed of another. Then the server is
killed in mid-job: a new one has the queue again, and SIGTERM saves."""

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dreamsa.runs import Run
from dreamsa.web.jobs import MAX_WAITING
from prove.common import Result
from prove.site import Server, serving

COUNT, QUICK = 50, 20


def _memory(server: Server) -> int:
    """Resident set, MB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024


def _until_running(server: Server, run_id: str) -> None:
    deadline = time.monotonic() + 120
    while server.call("status", run_id).get("step", 0) < 3:
        assert time.monotonic() < deadline, server.call("status", run_id)
        time.sleep(0.2)


def prove(folder: Path, count: int) -> Result:
    runs, failures, slowest = folder / "runs", [], 0.0
    with serving(folder, runs) as server:
        first = server.start()
        _until_running(server, first)
        before = _memory(server)

        def client(seed: int) -> tuple[object, float]:
            started = time.monotonic()
            return server.start(seed), time.monotonic() - started

        with ThreadPoolExecutor(count) as pool:
            answers = pool.map(client, range(1, count + 1))
            for _ in range(10):
                started = time.monotonic()
                assert server.ask("/")[0] == 200
                slowest = max(slowest, time.monotonic() - started)
            answers = list(answers)
        accepted = [(seed, a) for seed, (a, _) in enumerate(answers, 1) if isinstance(a, str)]
        refused = [a for a, _ in answers if not isinstance(a, str)]
        if len(accepted) != min(MAX_WAITING, count):
            failures.append(f"{len(accepted)} clients were accepted beside the running job")
        failures += [f"refused with {a}" for a in refused if "wait already" not in str(a)]
        failures += [
            f"{run_id} has not the seed {seed}"
            for seed, run_id in accepted
            if Run(runs / run_id).config.seed != seed
        ]
        grown = _memory(server) - before
        if grown > 300:
            failures.append(f"memory grew by {grown} MB")
        queue = [first, *(run_id for _, run_id in sorted(accepted, key=lambda pair: pair[1]))]
    with serving(folder, runs) as server:  # leaving the first has killed it with SIGKILL
        _until_running(server, first)
        found = [
            one for one in queue if server.call("status", one)["state"] in ("running", "queued")
        ]
        if found != queue:
            failures.append(f"after kill -9 {len(found)} of {len(queue)} jobs are in the queue")
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
        if code != 128 + signal.SIGTERM or Run(runs / first).record["step"] < 1:
            failures.append(f"SIGTERM: exit {code}")
    facts = {"accepted": len(accepted), "refused": len(refused), "growth, MB": grown}
    return Result(count, failures, {**facts, "slowest page, s": round(slowest, 1)})
