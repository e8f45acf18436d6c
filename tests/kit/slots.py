"""Slots of a cluster that are moved from one node to another, as `redis-cli --cluster reshard` does it."""

from __future__ import annotations

from redis.crc import key_slot

from tests.kit.servers import HOST, ClusterOfThree, Server, wait_until


def views(node: Server) -> list[list[str]]:
    """What a node knows of all: for each a line of its id, address, flags, epoch… and ranges of slots."""
    return [line.split() for line in node.ask("CLUSTER", "NODES").decode().splitlines()]


def agree(cluster: ClusterOfThree) -> bool:
    """Whether all nodes know the same of who serves which slots, and since which epoch."""
    known = [{(line[0], line[6], *line[8:]) for line in views(node)} for node in cluster.nodes]
    return known[0] == known[1] == known[2] and len({line[6] for line in views(cluster.nodes[0])}) == 3


class Move:
    """The slot of a bucket on its way from the node that serves it to another, step by step."""

    def __init__(self, cluster: ClusterOfThree, bucket: int, target: Server | None = None) -> None:
        self.cluster = cluster
        self.slot = key_slot(f"{{aimemo:{bucket}}}".encode())
        self.source = next(node for node in cluster.nodes if self._serves(node))
        self.target = target or next(node for node in cluster.nodes if node is not self.source)
        self._source_id, self._target_id = (node.ask("CLUSTER", "MYID") for node in (self.source, self.target))

    def _serves(self, node: Server) -> bool:
        myself = next(line for line in views(node) if "myself" in line[2])
        ranges = (part.partition("-") for part in myself[8:] if not part.startswith("["))
        return any(int(first) <= self.slot <= int(last or first) for first, _, last in ranges)

    def begin(self) -> None:
        self.target.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self._source_id)
        self.source.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self._target_id)

    def names(self, count: int) -> list[bytes]:
        found: list[bytes] = self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        return found

    def carry(self, *names: bytes) -> None:
        self.source.ask("MIGRATE", HOST, self.target.port, "", 0, 5000, "KEYS", *names)

    def end(self) -> None:
        """Carry what is left, and tell all."""
        while names := self.names(10):
            self.carry(*names)
        for node in (self.target, self.source, *self.cluster.nodes):
            node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self._target_id)
        wait_until(lambda: agree(self.cluster), "all nodes agree")

    def __call__(self) -> None:
        self.begin()
        self.end()


def move_all(cluster: ClusterOfThree, buckets: range, target: Server) -> None:
    for bucket in buckets:
        move = Move(cluster, bucket, target)
        if move.source is not target:
            move()


def spread(cluster: ClusterOfThree) -> None:
    """Every node serves a third of the buckets."""
    for number, node in enumerate(cluster.nodes):
        move_all(cluster, range(number * 16 // 3, (number + 1) * 16 // 3), node)
