"""The loss of classes of whole texts: a function of logits, one a text."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trimtab.losses.stable import at_least_fp32


def classification_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """-log softmax(z)_y of every text: [N] from logits [N, C] and class numbers [N].

    L_FT of GPT-1's fine-tune (Radford et al. 2018, equations 3 and 4), z = h_m W_y.
    """
    return F.cross_entropy(at_least_fp32(logits), classes, reduction="none")
