"""Deployment checks: the gates of a `deploy.toml`, run on a model file."""
