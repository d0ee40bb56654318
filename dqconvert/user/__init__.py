"""The user's own code and files: factories that build a model, and saved inputs."""
