"""The ground: files and manifests, console, errors, commands, processes, provenance."""
