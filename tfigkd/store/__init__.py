"""What is known of the teacher, on disk: TFRecord shards keyed by example id."""
