"""The fields of an experiment, reading them from TOML and the command line."""
