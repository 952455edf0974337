"""Attention-based multiple instance learning: a slide's class from the vectors of its tiles."""

from __future__ import annotations

import torch
from torch import nn


class Abmil(nn.Module):
    """Gated attention pooling of Ilse, Tomczak and Welling 2018 (arXiv 1802.04712, eq. 7 and 9).

    For a bag of n vectors x_k of D numbers, with ⊙ the product number by number:

        h_k = relu(E x_k + e)                                      [H]
        s_k = w · (tanh(V h_k + v) ⊙ sigmoid(U h_k + u))           one number
        a_k = exp(s_k) / sum_j exp(s_j)                            the attention; sums to 1
        logits = C (sum_k a_k h_k) + c                             [classes]

    In training, `dropout` leaves out that share of the numbers of h and of the gated product.
    """

    def __init__(
        self, *, dim: int, n_classes: int, hidden: int, attention: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.value = nn.Sequential(nn.Linear(hidden, attention), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(hidden, attention), nn.Sigmoid())
        self.score = nn.Sequential(nn.Dropout(dropout), nn.Linear(attention, 1, bias=False))
        self.classify = nn.Linear(hidden, n_classes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [n,D] of one slide, n > 0 -> logits float32 [classes], attention float32 [n]."""
        hidden = self.embed(features)
        scores = self.score(self.value(hidden) * self.gate(hidden)).squeeze(1)
        attention = torch.softmax(scores, dim=0)
        return self.classify(attention @ hidden), attention
