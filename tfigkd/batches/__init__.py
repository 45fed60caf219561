"""Training batches: random geometry, overlays and placebo controls, as a function of (seed, epoch, id)."""
