"""The encoder's identity, remembered in the output so that a finished job loads no weights."""

from __future__ import annotations

import json

from ray_pipeline.dataset.layout import identity_key
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import AskedPrecision, EncoderIdentity
from ray_pipeline.encoders.weights import resolve_weights, weights_cache_key
from ray_pipeline.errors import NotFoundError
from ray_pipeline.store import Store


def remembered_identity(
    output: Store | None, model: str, weights: str | None, precision: AskedPrecision, device: str
) -> EncoderIdentity:
    """The identity of `model` with `weights` on this machine's `device`.

    Computed once per version of the weights and kept under `_state/encoders/`; runs where the
    encoder will run, since that machine decides the precision. Raises WeightsError.
    """
    # torch and timm take many seconds to import: the driver, which imports this module, does not.
    from ray_pipeline.encoders.encoder import probe_identity, resolve_precision  # noqa: PLC0415

    spec = get_spec(model)
    source = resolve_weights(spec, weights)
    resolved = resolve_precision(device, precision)
    key = identity_key(f"{weights_cache_key(spec, source)}-{resolved}")
    if output is not None:
        try:
            return EncoderIdentity.from_json(json.loads(output.get(key)))
        except (NotFoundError, KeyError, TypeError, ValueError):
            pass  # not known yet, or written by another version
    identity = probe_identity(model, weights, resolved, device)
    if output is not None:
        output.put(key, json.dumps(identity.to_json(), sort_keys=True).encode())
    return identity
