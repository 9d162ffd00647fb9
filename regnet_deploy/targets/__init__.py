"""Deployment targets: a bundle as a Triton repository, KServe manifests, a Ray Serve application, a compose project."""
