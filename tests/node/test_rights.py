"""The chart gives its accounts what they use, and nothing else: judged by all the other tests of this folder, so it comes last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.rights import Right, granted, used

if TYPE_CHECKING:
    from tests.node.conftest import Installed
    from tests.support.rights import Used

pytestmark = pytest.mark.node

# Rights that no test here uses, and why they are given all the same.
UNUSED: dict[str, dict[Right, str]] = {
    "llmos-operator": {
        Right("update", "modelworkloads.llmos.dev/finalizers"): "asked for by the admission plugin "
        "OwnerReferencesPermissionEnforcement of clusters that have it, never by a request",
        Right("get", "pods"): "only where an API server did not answer a create: whether the pod exists",
        Right("get", "services"): "only where a Service of the name is there already: whose it is",
        Right("patch", "services"): "only where that Service is of a former workload of the same name",
        Right("delete", "modelprofiles.llmos.dev"): "only when no workload has named a model for seven days",
        Right(
            "delete", "modelworkloads.llmos.dev"
        ): "only of what has finished, for its ttlSecondsAfterFinished",
        Right("patch", "modelcaches.llmos.dev/status"): "only where there are ModelCaches",
    },
}


@pytest.fixture(scope="module")
def audited(release: Installed) -> Used:
    return used(release.node.paths.logs / "audit.log", release.audited_from)


def test_no_account_is_denied_what_it_needs(audited: Used) -> None:
    assert audited.done.keys() >= {"llmos-operator", "llmos-agent", "llmos-gateway"}
    assert audited.denied == []


def test_no_account_may_do_what_it_never_does(
    installed: Installed, audited: Used, request: pytest.FixtureRequest
) -> None:
    ran = {item.path for item in request.session.items}
    missing = sorted(path.name for path in Path(__file__).parent.glob("test_*.py") if path not in ran)
    if missing:
        pytest.skip(f"what is used shows when all tests of the folder run: {', '.join(missing)} did not")
    if failures := request.session.testsfailed:
        pytest.skip(f"what is used shows when all tests before this one pass: {failures} did not")
    rights = granted(installed)
    assert rights.keys() == {"llmos-operator", "llmos-agent", "llmos-gateway"}
    unused = {
        name: {right for right in given - audited.done[name] if right not in UNUSED.get(name, {})}
        for name, given in rights.items()
    }
    assert unused == {name: set() for name in rights}
    needless = {
        name: set(known) & audited.done[name] | set(known) - rights[name] for name, known in UNUSED.items()
    }
    assert needless == {name: set() for name in UNUSED}, "exceptions that are none"
