"""The path of an image on the host: source, ops, pipeline, device."""
