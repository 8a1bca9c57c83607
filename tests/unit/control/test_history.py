from __future__ import annotations

from llmos_operator.api.conditions import Reason
from llmos_operator.control.history import failure_of, preemption_of
from llmos_operator.manifests import status as manifest
from llmos_operator.manifests.observed import Failure, Observed, Preemption
from tests.support.replicas import NOW, a_pod_of, a_work


def test_a_failure_is_read_back_from_the_status_that_told_it() -> None:
    failure = Failure("Corrupted", "digest mismatch", NOW, exit_code=3, generation=1)
    status = manifest.to_json(manifest.build(Observed(workload=a_work(), now=NOW, failure=failure)))
    assert failure_of(status, 1) == failure


def test_a_failure_of_an_older_spec_holds_nothing_back() -> None:
    failure = Failure("Corrupted", "digest mismatch", NOW, generation=1)
    status = manifest.to_json(manifest.build(Observed(workload=a_work(), now=NOW, failure=failure)))
    again = failure_of(status, 2)
    assert again is not None
    assert again.generation != 2


def test_a_preemption_is_remembered_until_it_is_over() -> None:
    work = a_work()
    event = Preemption("team/vip", "Evict", Reason.RECLAIMED, "quota was reclaimed", NOW)
    hit = manifest.to_json(manifest.build(Observed(workload=work, now=NOW, preemption=event)))
    assert preemption_of(hit) == event
    back = Observed(workload=work, now=NOW, preemption=event, pods=(a_pod_of(work, ready=True),))
    assert preemption_of(manifest.to_json(manifest.build(back))) is None


def test_an_empty_status_tells_nothing() -> None:
    assert failure_of({}, 1) is None
    assert preemption_of({}) is None
