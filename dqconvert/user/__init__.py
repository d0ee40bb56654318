"""What the user brings from outside: the code that builds a model, and the files that hold its inputs."""
