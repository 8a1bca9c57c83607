"""Quota of a tree of queues: nominal, borrowing and lending, for devices and device memory.

Every queue owns `nominal` and offers what it does not use to its relatives through the parent, at most `lendingLimit`
of it; beyond its own it may use what the tree has left, at most `borrowingLimit`. With

    subtree(q)    = nominal(q) + sum over children c of (subtree(c) - kept(c))
    kept(q)       = subtree(q) - lendingLimit(q), at least 0          (never lent)
    use(q)        = own use + sum over children c of max(0, use(c) - kept(c))
    available(q)  = max(0, kept(q) - use(q)) + min(available(parent), lent(q) - used of it + borrowingLimit(q))

where the root's available is subtree - use. This is the algebra Kueue published as KEP-79 (hierarchical cohorts). A
tree in which no queue sets a nominal amount is unlimited.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.state.labels import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Queue

    _LimitsOf: TypeAlias = Callable[[Queue], "_Limits"]

UNLIMITED_AMOUNT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Amount:
    """Devices in thousandths and device memory in bytes."""

    gpu_milli: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.gpu_milli + other.gpu_milli, self.memory_bytes + other.memory_bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.gpu_milli - other.gpu_milli, self.memory_bytes - other.memory_bytes)


def charge(claim: Claim) -> Amount:
    """Return what a claim costs its queue."""
    return Amount(claim.gpu_milli, claim.charged_bytes)


@dataclass(slots=True)
class _Limits:
    """One resource of one queue; None where the queue says nothing."""

    nominal: int | None
    borrowing: int | None
    lending: int | None


@dataclass(slots=True)
class _Node:
    """A queue in the tree, for one resource."""

    name: str
    limits: _Limits
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    subtree: int = 0
    kept: int = 0
    use: int = 0
    sets_nominal: bool = False  # here or below

    @property
    def bounded(self) -> bool:
        """Whether any queue of this tree sets a nominal amount."""
        root = self
        while root.parent is not None:
            root = root.parent
        return root.sets_nominal

    def available(self) -> int:
        """Return how much more may be used here; negative when a limit was lowered below use."""
        if self.parent is None:
            return self.subtree - self.use if self.sets_nominal else UNLIMITED_AMOUNT
        own = max(0, self.kept - self.use)
        shared = self.parent.available()
        if self.limits.borrowing is not None and self.limits.nominal is not None:
            lent = self.subtree - self.kept
            used = max(0, self.use - self.kept)
            shared = min(shared, lent - used + self.limits.borrowing)
        return own + shared

    def add(self, amount: int) -> None:
        """Charge `amount` (negative: release) here and, beyond what is kept, to the parent."""
        before = max(0, self.use - self.kept)
        self.use += amount
        if self.parent is not None:
            change = max(0, self.use - self.kept) - before
            if change:
                self.parent.add(change)


class QuotaTree:
    """Use and limits of all queues. Queues in a cycle or under a missing parent are listed in `invalid` with why."""

    def __init__(self, queues: Mapping[str, Queue]) -> None:
        self.queues = queues
        self._past: QuotaTree | None = None
        self.invalid = _invalid(queues)
        good = {name: q for name, q in queues.items() if name not in self.invalid}
        self._gpus = _tree(
            good, lambda q: _Limits(q.nominal_gpu_milli, q.borrowing_gpu_milli, q.lending_gpu_milli)
        )
        self._memory = _tree(
            good, lambda q: _Limits(q.nominal_memory_bytes, q.borrowing_memory_bytes, q.lending_memory_bytes)
        )

    @classmethod
    def of(cls, snapshot: Snapshot) -> QuotaTree:
        """Return the tree with everything charged that holds a claim, and what is remembered of past use."""
        tree = cls(snapshot.queues)
        tree.remember(snapshot.averages)
        for queue, (milli, held) in snapshot.charged.items():
            tree.add(queue, Amount(milli, held))
        return tree

    def add(self, queue: str, amount: Amount, sign: int = 1) -> None:
        """Charge (or with sign -1 release) an amount to a queue; unknown queues are not counted."""
        if queue in self._gpus:
            self._gpus[queue].add(sign * amount.gpu_milli)
            self._memory[queue].add(sign * amount.memory_bytes)

    def use(self, queue: str) -> Amount:
        """Return what a queue and its children's borrowing use."""
        if queue not in self._gpus:
            return Amount()
        return Amount(self._gpus[queue].use, self._memory[queue].use)

    def room(self, queue: str) -> Amount:
        """Return how much more a queue may use now; a queue that does not exist sets no limit."""
        if queue not in self._gpus:
            return Amount(UNLIMITED_AMOUNT, UNLIMITED_AMOUNT)
        return Amount(self._gpus[queue].available(), self._memory[queue].available())

    def fits(self, queue: str, amount: Amount) -> bool:
        """Return whether the amount may be charged to the queue."""
        room = self.room(queue)
        return (amount.gpu_milli <= room.gpu_milli or not amount.gpu_milli) and (
            amount.memory_bytes <= room.memory_bytes or not amount.memory_bytes
        )

    def within_nominal(self, queue: str, amount: Amount) -> bool:
        """Return whether the queue stays within its own (with its children's) nominal amount after the charge.

        A queue without any nominal owns nothing, so it is never within it.
        """
        if queue not in self._gpus:
            return False
        owned = False
        for node, more in ((self._gpus[queue], amount.gpu_milli), (self._memory[queue], amount.memory_bytes)):
            if node.limits.nominal is None:
                continue
            owned = True
            if more and node.use + more > node.subtree:
                return False
        return owned

    def borrows(self, queue: str) -> bool:
        """Return whether a queue uses more than its nominal amount of something."""
        if queue not in self._gpus:
            return False
        nodes = (self._gpus[queue], self._memory[queue])
        return any(n.limits.nominal is not None and n.use > n.subtree for n in nodes)

    def borrowed(self, queue: str) -> Amount:
        """Return how much more than its nominal amount a queue with its children uses, where it has one."""
        if queue not in self._gpus:
            return Amount()
        nodes = (self._gpus[queue], self._memory[queue])
        return Amount(*(max(0, n.use - n.subtree) if n.limits.nominal is not None else 0 for n in nodes))

    def beyond_milli(self, queue: str) -> int:
        """Return use beyond the nominal amount in thousandths of that amount; the larger of both resources."""
        if queue not in self._gpus:
            return 0
        nodes = (self._gpus[queue], self._memory[queue])
        return max((n.use - n.subtree) * 1000 // max(1, n.subtree) if n.bounded else 0 for n in nodes)

    def unlimited(self, queue: str) -> bool:
        """Return whether no quota applies to the queue at all."""
        if queue not in self._gpus:
            return True
        return not self._gpus[queue].bounded and not self._memory[queue].bounded

    def remember(self, averages: Mapping[str, tuple[int, int]]) -> None:
        """Take the decayed use of queues (thousandths of devices, bytes), of those with a half-life."""
        if averages:
            self._past = QuotaTree(self.queues)
            for name, (milli, held) in averages.items():
                self._past.add(name, Amount(milli, held))

    def weighed(self, queue: str) -> Amount:
        """Return the use that counts for the share: present use, with a half-life the mean of present and decayed use.

        Present use stays a part of it, so that within one plan a queue's share grows with what it is given.
        """
        use, one = self.use(queue), self.queues.get(queue)
        if one is None or one.half_life <= 0 or self._past is None:
            return use
        past = self._past.use(queue)
        return Amount((use.gpu_milli + past.gpu_milli) // 2, (use.memory_bytes + past.memory_bytes) // 2)

    def share_micro(self, queue: str, total: Amount) -> int:
        """Return the weighted dominant share: the larger part of the cluster in use, by weight, in millionths.

        Use is as `weighed` says.
        """
        use, one = self.weighed(queue), self.queues.get(queue)
        if one is None:
            return 0
        gpus = use.gpu_milli * 1000 // max(1, total.gpu_milli)
        memory = use.memory_bytes * 1000 // max(1, total.memory_bytes)
        return max(gpus, memory) * 1000 // max(1, one.weight)


def admitted(snapshot: Snapshot, queue: str, namespace: str) -> bool:
    """Return whether a queue takes workloads of a namespace."""
    known = snapshot.namespaces.get(namespace)
    labels = known.labels if known is not None else {"kubernetes.io/metadata.name": namespace}
    return matches(snapshot.queues[queue].namespaces, labels)


def invalid_reason(tree: QuotaTree, queue: str) -> tuple[Reason, str] | None:
    """Return why a queue cannot be used, None if it can."""
    problem = tree.invalid.get(queue)
    return (Reason.QUEUE_INVALID, problem) if problem else None


def _invalid(queues: Mapping[str, Queue]) -> dict[str, str]:
    found = {}
    for name in sorted(queues):
        seen = [name]
        parent = queues[name].parent
        while parent:
            if parent not in queues:
                found[name] = f"queue {name}: parent {parent} does not exist"
                break
            if parent in seen:
                found[name] = f"queue {name}: its parents form a cycle ({' -> '.join([*seen, parent])})"
                break
            seen.append(parent)
            parent = queues[parent].parent
    return found


def _tree(queues: Mapping[str, Queue], limits: _LimitsOf) -> dict[str, _Node]:
    nodes = {name: _Node(name, limits(q)) for name, q in sorted(queues.items())}
    for name, node in nodes.items():
        parent = queues[name].parent
        if parent:
            node.parent = nodes[parent]
            nodes[parent].children.append(node)
    for node in nodes.values():
        if node.parent is None:
            _total(node)
    return nodes


def _total(node: _Node) -> None:
    node.subtree = node.limits.nominal or 0
    node.sets_nominal = node.limits.nominal is not None
    for child in node.children:
        _total(child)
        node.sets_nominal = node.sets_nominal or child.sets_nominal
        node.subtree += child.subtree - child.kept
    lending = node.limits.lending
    node.kept = max(0, node.subtree - lending) if lending is not None else 0
