"""Plans that can't run at once are refused with the numbers, before anything starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import DoesNotFitError
from ray_pipeline.placement import Node, check_fit, choose_placement, commit_memory_bytes, short_of
from ray_pipeline.settings import JobSettings


def settings(**said: object) -> JobSettings:
    return JobSettings.model_validate({"slides": ["s"], "output": "o", **said})


@given(cpus=st.integers(1, 64), nodes=st.integers(1, 5), gpus=st.integers(0, 8))
def test_the_default_placement_fits_every_cluster(cpus: int, nodes: int, gpus: int) -> None:
    cluster = [Node(cpus=cpus + gpus, gpus=gpus)] * nodes
    check_fit(choose_placement(settings(), cluster), cluster)


def test_one_encoder_per_gpu_and_no_more_readers_than_they_need() -> None:
    placement = choose_placement(settings(), [Node(cpus=64, gpus=4), Node(cpus=96)])
    assert (placement.encoders, placement.encoder_gpus) == (4, 1.0)
    assert placement.readers <= 48
    assert placement.threads is None


@pytest.mark.parametrize(
    ("cpus", "said", "threads"),
    [(2, {}, 2), (16, {}, 16), (16, {"encoders": 4}, 4), (16, {"encoder_cpus": 3.0}, 3)],
)
def test_a_cpu_encoder_computes_on_all_that_nobody_else_needs(
    cpus: int, said: dict[str, object], threads: int
) -> None:
    placement = choose_placement(settings(**said), [Node(cpus=cpus)])
    assert placement.threads == threads
    check_fit(placement, [Node(cpus=cpus)])


@pytest.mark.parametrize(
    ("said", "nodes"),
    [
        ({"readers": 4, "reader_cpus": 1.0}, [Node(cpus=2)]),
        ({"encoders": 2, "encoder_gpus": 1.0}, [Node(cpus=16, gpus=1)]),
        ({"encoders": 1, "encoder_cpus": 4.0}, [Node(cpus=3), Node(cpus=3)]),
        ({"encoders": 1, "encoder_cpus": 2.0}, [Node(cpus=2)]),
    ],
    ids=["too many readers", "too few GPUs", "sums lie", "no room for tasks"],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    said: dict[str, object], nodes: list[Node]
) -> None:
    placement = choose_placement(settings(**said), nodes)
    with pytest.raises(DoesNotFitError, match=r"need [\d.]+ CPUs and [\d.]+ GPUs at once"):
        check_fit(placement, nodes)


@given(
    tiles=st.integers(0, 10**6),
    nodes=st.lists(
        st.builds(Node, cpus=st.integers(0, 8), memory_bytes=st.integers(1 << 30, 1 << 38)),
        min_size=1,
    ),
)
def test_any_node_with_a_cpu_can_take_any_commit(tiles: int, nodes: list[Node]) -> None:
    memory = commit_memory_bytes(tiles, 1536, nodes)
    takers = [node.memory_bytes for node in nodes if node.cpus]
    assert all(memory <= offered for offered in takers)
    assert memory >= 256 << 20


def test_a_commit_declares_twice_its_vectors_and_a_row_group() -> None:
    nodes = [Node(cpus=8, memory_bytes=64 << 30), Node(cpus=0, memory_bytes=1 << 20)]
    assert commit_memory_bytes(100_000, 1536, nodes) == 2 * 100_000 * 1536 * 2 + (256 << 20)
    assert commit_memory_bytes(10, 8, [Node(cpus=8)]) == 2 * 10 * 8 * 2 + (256 << 20)


def test_a_node_too_small_for_any_commit_is_refused_with_the_numbers() -> None:
    small = Node(cpus=16, memory_bytes=200 << 20)
    placement = choose_placement(settings(), [small])
    with pytest.raises(DoesNotFitError, match="200 MB of memory, and a commit takes 320 MB"):
        check_fit(placement, [small])
    check_fit(placement, [Node(cpus=16, memory_bytes=400 << 20)])


def test_what_other_jobs_hold_is_told() -> None:
    placement = choose_placement(settings(), [Node(cpus=8, gpus=1)])
    assert short_of(placement, Node(cpus=8, gpus=1)) == ""
    assert short_of(placement, Node(cpus=8)).endswith(
        "1 GPUs are needed at once, 8 and 0 are free now"
    )
    assert short_of(placement, Node(cpus=1, gpus=1))


def test_encoders_go_where_their_resource_is() -> None:
    h100 = frozenset({"accelerator_type:H100"})
    cluster = [Node(cpus=8, gpus=4), Node(cpus=8, gpus=2, resources=h100), Node(cpus=16)]
    said = settings(encoder_resource="accelerator_type:H100")
    placement = choose_placement(said, cluster)
    assert (placement.encoders, list(placement.encoder_resources)) == (2, list(h100))
    check_fit(placement, cluster)
    with pytest.raises(DoesNotFitError, match=r"GPUs, accelerator_type:H100\): 3 encoders"):
        check_fit(choose_placement(settings(**vars(said) | {"encoders": 3}), cluster), cluster)


def test_a_resource_that_no_node_has_is_named_with_those_there_are() -> None:
    cluster = [Node(cpus=8, gpus=4, resources=frozenset({"big", "accelerator_type:T4"}))]
    placement = choose_placement(settings(encoder_resource="h100", encoder_gpus=1.0), cluster)
    with pytest.raises(DoesNotFitError, match=r"no node has 'h100'.* accelerator_type:T4, big;"):
        check_fit(placement, cluster)
