"""The work of the command line's commands, one file each; :mod:`dqconvert.cli` has their options and help."""
