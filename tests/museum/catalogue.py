"""All exhibits, in the order of the catalogue."""

from __future__ import annotations

from typing import Final

from tests.museum import (
    m01_hpet,
    m02_dma_to_self,
    m03_scripts,
    m04_shared_flag,
    m05_blocked_neighbour,
    m06_moved_stall,
    m07_lost_kick,
    m08_migration_waits,
    m09_nested_loop,
    m10_unplug,
    m11_reset_waits,
    m12_early_completion,
    m14_spinning_loop,
    m15_ring_order,
    m16_helper_without_lock,
    m17_stop_the_world,
    m18_dead_client,
    m19_two_streams,
    m20_restored_deadline,
    m21_unseen_stall,
    m22_hand_offs,
    s01_moved_bar,
    s02_pause_protocol,
    s03_plug_abba,
    s04_callback,
)

EXHIBITS: Final = tuple(
    module.EXHIBIT
    for module in (
        m01_hpet,
        m02_dma_to_self,
        m03_scripts,
        m04_shared_flag,
        m05_blocked_neighbour,
        m06_moved_stall,
        m07_lost_kick,
        m08_migration_waits,
        m09_nested_loop,
        m10_unplug,
        m11_reset_waits,
        m12_early_completion,
        m14_spinning_loop,
        m15_ring_order,
        m16_helper_without_lock,
        m17_stop_the_world,
        m18_dead_client,
        m19_two_streams,
        m20_restored_deadline,
        m21_unseen_stall,
        m22_hand_offs,
        s01_moved_bar,
        s02_pause_protocol,
        s03_plug_abba,
        s04_callback,
    )
)
