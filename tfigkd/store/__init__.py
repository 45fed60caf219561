"""Stores of teacher outputs on disk: TFRecord shards keyed by example id."""
