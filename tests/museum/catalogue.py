"""All exhibits, in the order of the catalogue."""

from __future__ import annotations

from tests.museum import (
    m01_hpet,
    m02_dma_to_self,
    m03_scripts,
    m05_blocked_neighbour,
    m09_nested_loop,
    m14_spinning_loop,
    m15_ring_order,
    m16_helper_without_lock,
    m18_dead_client,
    m20_restored_deadline,
)

EXHIBITS = tuple(
    module.EXHIBIT
    for module in (
        m01_hpet,
        m02_dma_to_self,
        m03_scripts,
        m05_blocked_neighbour,
        m09_nested_loop,
        m14_spinning_loop,
        m15_ring_order,
        m16_helper_without_lock,
        m18_dead_client,
        m20_restored_deadline,
    )
)
