"""Request ids."""

from __future__ import annotations

import re

from agent.proxy.request_id import ID_BYTES, RequestIds


def test_each_id_is_another_and_has_32_digits() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(70_000)]  # past the part that counts in two bytes
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(rb"[0-9a-f]{32}", each) for each in made[::997])
    assert {len(each) for each in made} == {ID_BYTES}


def test_two_processes_make_other_ids() -> None:
    assert RequestIds().next()[:16] != RequestIds().next()[:16]
