"""What the commands of the command line do, one file each; :mod:`dqconvert.cli` has their options and help."""
