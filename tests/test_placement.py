"""Plans that can't run at once are refused with the numbers, before anything starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import DoesNotFitError
from ray_pipeline.placement import Node, check_fit, choose_placement
from ray_pipeline.settings import JobSettings


def settings(**said: object) -> JobSettings:
    return JobSettings.model_validate({"slides": ["s"], "output": "o", **said})


@given(cpus=st.integers(2, 64), nodes=st.integers(1, 5), gpus=st.integers(0, 8))
def test_the_default_placement_fits_every_cluster_of_two_cpu_nodes_and_more(
    cpus: int, nodes: int, gpus: int
) -> None:
    cluster = [Node(cpus=cpus + gpus, gpus=gpus)] * nodes
    check_fit(choose_placement(settings(), cluster), cluster)


def test_one_encoder_per_gpu_and_no_more_readers_than_they_need() -> None:
    placement = choose_placement(settings(), [Node(cpus=64, gpus=4), Node(cpus=96)])
    assert (placement.encoders, placement.encoder_gpus) == (4, 1.0)
    assert placement.readers <= 48
    assert placement.threads is None


def test_a_cpu_encoder_computes_on_the_cpus_it_holds() -> None:
    assert choose_placement(settings(), [Node(cpus=16)]).threads == 15


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
