"""The KV-migration sidecar: owns every connection that carries KV at rest. numpy, no torch."""
