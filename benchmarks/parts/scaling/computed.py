"""Time of messages between many GPUs, computed from the bytes and calls that were counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

PERIOD = 1000
"""Steps between reallocations in the paper's runs, over which one is spread."""


class Link(NamedTuple):
    """A link between ranks, as assumed."""

    name: str
    latency: float
    """alpha: seconds for a message to get from one rank to another, whatever its size."""
    bandwidth: float
    """beta: bytes a second that a rank sends, and receives at once."""


class Plan(NamedTuple):
    """Bytes that a reallocation hands to torch.distributed, as counted."""

    head: int
    """Bytes of the broadcast that do not depend on the layers."""
    layer: int
    """Bytes of the broadcast for each layer."""
    digests: tuple[int, ...]
    """Bytes of each message of each comparison."""

    def bytes(self, layers: int) -> int:
        """Return the bytes of the broadcast."""
        return self.head + self.layer * layers


LINKS = (Link("25 Gbit/s Ethernet", 50e-6, 25e9 / 8), Link("200 Gbit/s InfiniBand", 5e-6, 200e9 / 8))
GPUS = (8, 64, 512, 1024)
STEP = 0.1
"""Seconds of a training step, assumed: 256 images on each GPU."""
FLAGS = 24
"""Bytes of the question before each step whether any rank is to stop, has failed, or is to save."""


def tree(ranks: int, size: int, link: Link) -> float:
    """Seconds to send `size` bytes from one rank to all. Each that has them passes them on: log2(ranks) hops."""
    return (ranks - 1).bit_length() * (link.latency + size / link.bandwidth)


def exchanges(ranks: int) -> int:
    """Count the exchanges, one after the other, of a recursive doubling (`sync.largest_`).

    Example: 8 ranks make 3. Of 6 ranks 2 first hand what they have to a partner, 4 make 2 exchanges, and 2 answer: 4.
    """
    whole = ranks.bit_length() - 1
    return whole if ranks == 1 << whole else whole + 2


def messages(rank: int, ranks: int) -> int:
    """Count the messages of a rank in a recursive doubling. Ranks beyond a power of 2 send one, to a partner."""
    whole = ranks.bit_length() - 1
    spare = ranks - (1 << whole)
    return 1 if rank >= 1 << whole else whole + (rank < spare)


def doubling(ranks: int, size: float, link: Link) -> float:
    """Seconds of a recursive doubling, `size` bytes each way at once in each exchange."""
    return exchanges(ranks) * (link.latency + size / link.bandwidth)


def ring(ranks: int, size: float, link: Link) -> float:
    """Seconds of an all-reduce around a ring, `size` bytes a hop: 2 (ranks - 1) hops, one after the other."""
    return 2 * (ranks - 1) * (link.latency + size / link.bandwidth)


def plan_of(cases: Sequence[Mapping[str, Any]]) -> Plan:
    """Return the plan that was counted.

    RuntimeError unless the broadcast grows by the same bytes with each layer, and every rank hands over only it and
    its messages of as many comparisons.
    """
    counted = {case["layers"]: sent for case in cases for sent in connected(case)}
    few, many = min(counted), max(counted)
    sizes = {layers: sum(sent[0]["broadcast"]) for layers, sent in counted.items()}
    layer = (sizes[many] - sizes[few]) // (many - few)
    one_each = counted[few][0]["send"][:: messages(0, len(counted[few]))]
    plan = Plan(sizes[few] - layer * few, layer, tuple(one_each))
    for case in cases:
        for sent in connected(case):
            if sent != [expected(plan, case["layers"], rank, len(sent)) for rank in range(len(sent))]:
                raise RuntimeError(f"{case['layers']} layers of {case['width']}: {sent} is not {plan}")
    return plan


def expected(plan: Plan, layers: int, rank: int, ranks: int) -> dict[str, list[int]]:
    """Return the calls of a rank in a reallocation."""
    sends = [size for size in plan.digests for _ in range(messages(rank, ranks))]
    return {"broadcast": [plan.bytes(layers)], "send": sends}


def connected(case: Mapping[str, Any]) -> list[list[dict[str, list[int]]]]:
    """Return what each rank handed over where there was more than one."""
    return [found["sent"] for ranks, found in case["ranks"].items() if int(ranks) > 1]


def extrapolated(cases: Sequence[Mapping[str, Any]], layers: int, ranks: int, link: Link) -> dict[str, float]:
    """Seconds of one reallocation's traffic, and shares of steps of `STEP` with one each `PERIOD` steps or each step.

    Digests are compared by recursive doubling, as they are, and by gloo's all-reduce, a ring, as they were.
    """
    plan = plan_of(cases)
    broadcast = tree(ranks, plan.bytes(layers), link)
    by_doubling = sum(doubling(ranks, size, link) for size in plan.digests)
    by_ring = sum(ring(ranks, size, link) for size in plan.digests)
    return {
        "broadcast": broadcast,
        "digests_doubling": by_doubling,
        "digests_ring": by_ring,
        "share_doubling": (broadcast + by_doubling) / (PERIOD * STEP),
        "share_ring": (broadcast + by_ring) / (PERIOD * STEP),
        "share_every_step_doubling": (broadcast + by_doubling) / STEP,
        "share_every_step_ring": (broadcast + by_ring) / STEP,
    }


def growing(sizes: Mapping[str, Any]) -> dict[str, Callable[[int, Link], float]]:
    """Functions of ranks and link: seconds of all else that ranks say to each other, for a network of these sizes."""
    gradients, state = 4 * sizes["parameters"], sizes["rank_state_bytes"]
    rows = 8 * (sizes["layers_if_all"] + sizes["parameter_tensors"])
    share = sizes["active_share"]
    return {
        f"flags before each step, {FLAGS} bytes, recursive doubling": lambda n, link: doubling(n, FLAGS, link),
        "not done: the same by gloo's ring": lambda n, link: ring(n, FLAGS, link),
        f"all gradients, {gradients / 1e6:.0f} MB, ring: bytes": lambda n, link: (
            2 * (n - 1) / n * gradients / link.bandwidth
        ),
        f"active gradients, {100 * share:.0f} % of them: bytes": lambda n, link: (
            2 * (n - 1) / n * share * gradients / link.bandwidth
        ),
        "either, ring: hops of each bucket": lambda n, link: ring(n, 0, link),
        f"at a save: {state / 1e3:.0f} kB of each rank to rank 0": lambda n, link: (
            n * link.latency + (n - 1) * state / link.bandwidth
        ),
        "at a resume: the state of all ranks to each": lambda n, link: tree(n, n * state, link),
        f"where ranks differ: {rows:,} bytes of each to all": lambda n, link: (
            (n - 1) * (link.latency + rows / link.bandwidth)
        ),
    }
