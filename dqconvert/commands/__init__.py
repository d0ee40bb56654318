"""The work of the commands, one file each; :mod:`dqconvert.cli` has their help, ``options.py`` shared options."""
