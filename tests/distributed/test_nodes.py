"""Several machines: each a torchrun agent, with an address of its own where that can be had."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from litseq.data import TranslationDataModule
from rank_processes import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs the /proc of Linux"),
]

ONE_RANK = Path(__file__).with_name("one_rank.py")
STEP = 6  # batches of an optimizer step, on any number of machines


class Loopback:
    """Machines that share an address."""

    def __init__(self, count):
        self.master = "127.0.0.1"

    def command(self, node):
        return []

    def interface(self, node):
        return "lo"

    def close(self):
        """Nothing was made."""


class Namespaces:
    """Machines with addresses of their own: network namespaces on one bridge."""

    def __init__(self, count):
        self.tag, self.count, self.master = f"lq{os.getpid() % 10000}", count, "10.213.7.1"
        self._ip(f"link add {self.tag} type bridge")
        self._ip(f"link set {self.tag} up")
        for node in range(count):
            name = f"{self.tag}n{node}"
            self._ip(f"netns add {name}")
            self._ip(f"link add {name} type veth peer name eth0 netns {name}")
            self._ip(f"link set {name} master {self.tag} up")
            self._ip(f"-n {name} addr add 10.213.7.{node + 1}/24 dev eth0")
            for device in ("lo", "eth0"):
                self._ip(f"-n {name} link set {device} up")

    def _ip(self, words, *, check=True):
        subprocess.run(["ip", *words.split()], check=check, capture_output=True)

    def command(self, node):
        return ["ip", "netns", "exec", f"{self.tag}n{node}"]

    def interface(self, node):
        return "eth0"

    def close(self):
        for node in range(self.count):
            self._ip(f"netns del {self.tag}n{node}", check=False)
        self._ip(f"link del {self.tag}", check=False)


def has_namespaces():
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"lqtest{os.getpid() % 10000}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


@pytest.fixture(params=[Loopback, Namespaces])
def network(request):
    if request.param is Namespaces and not has_namespaces():
        pytest.skip("network namespaces need root and ip")
    network = request.param(3)
    yield network
    network.close()


def family(pid):
    """A process and all that it started, as /proc knows them."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = children.read_text().split() if children.exists() else []
    return [pid, *(member for child in below for member in family(int(child)))]


class Machines:
    """Starts an agent on each machine."""

    def __init__(self, network, count, folder, options, resume):
        self.agents, port = [], free_port()
        for node in range(count):
            words = ["-m", "torch.distributed.run", "--nnodes", str(count)]
            words += ["--node_rank", str(node), "--nproc_per_node", "1"]
            words += ["--master_addr", network.master, "--master_port", str(port)]
            words += [str(ONE_RANK), str(folder), json.dumps(options), str(STEP), resume]
            self.agents.append(
                subprocess.Popen(
                    [*network.command(node), sys.executable, *words],
                    env={
                        **os.environ,
                        "OMP_NUM_THREADS": "1",
                        "GLOO_SOCKET_IFNAME": network.interface(node),
                    },
                    stderr=(folder / f"err-{count}-{node}.txt").open("w"),
                    stdout=subprocess.DEVNULL,
                )
            )

    def kill(self, node):
        """As if the plug were pulled: the agent, its worker, and that one's processes."""
        for pid in family(self.agents[node].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, timeout=300):
        try:
            return [agent.wait(timeout) for agent in self.agents]
        finally:
            for node, agent in enumerate(self.agents):
                if agent.poll() is None:
                    self.kill(node)


def seen(folder, count):
    lines = []
    for path in folder.glob(f"ids-{count}-*.jsonl"):
        # a rank that was killed may have left half a line
        lines += [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]
    return lines


def wait_for_step(folder, count, step):
    end = time.monotonic() + 90
    while not any(line[1] >= step for line in seen(folder, count)):
        assert time.monotonic() < end, (folder / f"err-{count}-0.txt").read_text()
        time.sleep(0.05)


@pytest.fixture
def options(data_options):
    options = {**data_options, "max_tokens": 48}
    TranslationDataModule(**options).prepare_data()
    return options


def test_a_lost_machine_loses_no_example(network, options, tmp_path):
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    whole.mkdir()
    lost.mkdir()
    assert Machines(network, 1, whole, options, "start").wait() == [0]
    expected = torch.load(whole / "weights-1.pt")

    machines = Machines(network, 2, lost, options, "start")
    wait_for_step(lost, 2, 2)
    machines.kill(1)
    first, second = machines.wait()
    assert second == -signal.SIGKILL
    assert first not in (0, None)
    assert "rank 1 (host" in (lost / "err-2-0.txt").read_text()

    step = torch.load(lost / "last.ckpt", weights_only=True)["global_step"]
    assert step >= 1
    before = [line for line in seen(lost, 2) if line[1] < step]
    for count in (1, 3):
        again = tmp_path / f"again-{count}"
        shutil.copytree(lost, again)
        assert Machines(network, count, again, options, "resume").wait() == [0] * count
        lines = before + seen(again, count)
        for epoch in (0, 1):
            ids = Counter(i for e, _, batch in lines if e == epoch for i in batch if i != -1)
            assert sorted(ids) == list(range(300))
            assert set(ids.values()) == {1}
        weights = torch.load(again / f"weights-{count}.pt")
        torch.testing.assert_close(dict(weights), dict(expected), rtol=1e-8, atol=1e-9)
