"""Functions written as LLVM instructions, which loops call; README.md of the folder above says which, and why."""
