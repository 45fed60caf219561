"""Foundation modules: files and manifests, TFRecord, console, errors, commands, processes, provenance."""
