"""Blocks of loopback addresses."""

import ipaddress

import pytest

from llmos_operator.local.addresses import CLUSTERS, AddressBlock


def test_blocks_of_different_clusters_do_not_overlap() -> None:
    services = [ipaddress.ip_network(AddressBlock(index).service_cidr) for index in range(CLUSTERS)]
    pods = [set(AddressBlock(index).pods()) for index in range(CLUSTERS)]
    nodes = [{AddressBlock(index).node(ordinal) for ordinal in range(254)} for index in range(CLUSTERS)]
    for first in range(CLUSTERS):
        for second in range(first):
            assert not services[first].overlaps(services[second])
            assert not pods[first] & pods[second]
            assert not nodes[first] & nodes[second]


def test_every_address_is_a_loopback_host_address() -> None:
    block = AddressBlock(CLUSTERS - 1)
    addresses = [block.control_plane, block.api_service, block.node(253), *block.pods()]
    for address in addresses:
        parsed = ipaddress.ip_address(address)
        assert parsed.is_loopback
        assert parsed.packed[-1] not in {0, 255}


def test_pods_lie_in_the_pod_range_and_the_api_service_is_the_first_of_its_range() -> None:
    block = AddressBlock(5)
    network = ipaddress.ip_network(block.pod_cidr)
    assert all(ipaddress.ip_address(address) in network for address in block.pods())
    assert block.api_service == str(next(ipaddress.ip_network(block.service_cidr).hosts()))


@pytest.mark.parametrize("index", [-1, CLUSTERS])
def test_an_index_out_of_range_is_refused(index) -> None:
    with pytest.raises(ValueError, match=str(index)):
        AddressBlock(index)


def test_more_nodes_than_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="2032"):
        AddressBlock(0).node(2032)
