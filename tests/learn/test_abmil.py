"""The model is the published formula."""

from __future__ import annotations

import numpy as np
import torch

from ray_pipeline.learn.abmil import Abmil


def model() -> Abmil:
    torch.manual_seed(0)
    return Abmil(dim=6, n_classes=3, hidden=5, attention=4, dropout=0.25).eval()


def test_the_forward_pass_is_the_formula() -> None:
    made, x = model(), np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    p = {name: value.numpy() for name, value in made.state_dict().items()}
    h = np.maximum(x @ p["embed.0.weight"].T + p["embed.0.bias"], 0)
    value = np.tanh(h @ p["value.0.weight"].T + p["value.0.bias"])
    gate = 1 / (1 + np.exp(-(h @ p["gate.0.weight"].T + p["gate.0.bias"])))
    s = ((value * gate) @ p["score.1.weight"].T)[:, 0]
    a = np.exp(s) / np.exp(s).sum()
    logits = p["classify.weight"] @ (a @ h) + p["classify.bias"]
    with torch.no_grad():
        found, attention = made(torch.from_numpy(x))
    np.testing.assert_allclose(attention, a, rtol=1e-5)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)
    assert (found.dtype, attention.dtype) == (torch.float32, torch.float32)


def test_the_order_of_the_tiles_does_not_matter() -> None:
    made, x = model(), torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (logits, attention), (moved, attention_moved) = made(x), made(x[order])
    torch.testing.assert_close(moved, logits)
    torch.testing.assert_close(attention_moved, attention[order])
    assert abs(float(attention.sum()) - 1) < 1e-5
