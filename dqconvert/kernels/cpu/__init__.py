"""The operations on the CPU: compiled loops over tiles of rows, and the code that runs them on the thread pool."""
