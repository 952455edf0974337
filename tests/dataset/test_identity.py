"""The encoder's identity is computed once, and believed from then on: nothing is loaded for it."""

from __future__ import annotations

import json

from ray_pipeline.dataset.identity import remembered_identity
from ray_pipeline.store import Store


def test_a_remembered_identity_is_believed_and_nothing_is_loaded(output: Store) -> None:
    first = remembered_identity(output, "toy", None, "fp32", "cpu")
    (info,) = output.list("_state/encoders")
    kept = json.loads(output.get(info.key))
    # Only one who computes it anew can find out that this is not so.
    output.put(info.key, json.dumps({**kept, "weights_digest": "f" * 64}).encode())
    assert remembered_identity(output, "toy", None, "fp32", "cpu").weights_digest == "f" * 64
    output.put(info.key, b"{")
    assert remembered_identity(output, "toy", None, "fp32", "cpu") == first
    assert json.loads(output.get(info.key)) == kept


def test_another_precision_has_an_identity_of_its_own(output: Store) -> None:
    precisions = {
        remembered_identity(output, "toy", None, precision, "cpu").precision
        for precision in ("fp32", "bf16", "fp32")
    }
    assert precisions == {"fp32", "bf16"}
    assert len(list(output.list("_state/encoders"))) == 2
