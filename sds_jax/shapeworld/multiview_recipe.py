"""The settings of the shipped multi-view prior: a small MVDream (arXiv:2308.16512) of ShapeWorld.

The networks are those of the text prior (`recipe`), and training starts from its weights. Differences:

  - the prior looks at `VIEWS` views of an object together: the self-attention of the U-Net covers the tokens of all of
    them, as in the paper, which adds no parameters;
  - the views of an object are 90 degrees apart, with one elevation, distance and field of view, and one t;
  - text and cameras are dropped for all views of an object at once.
"""
from __future__ import annotations

VIEWS = 4
"""Number of views of an object that the prior looks at together."""

TRAINING = dict(
    num_images=3_000, steps=5_000, batch_size=4, learning_rate=5e-4, warmup=200, decay=0.4, weight_decay=0.01,
    ema_decay=0.999, drop_text=0.12, drop_camera=0.05, clip_norm=1.0, max_loss_weight=20.0, noise_power=3.0)
"""`num_images` and `batch_size` count objects with all their views."""
