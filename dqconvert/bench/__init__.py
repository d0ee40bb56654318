"""What ``dqconvert bench`` measures, one module per command: :mod:`.train`, :mod:`.prepare`.

Below them, from the bottom: :mod:`.graphs` and :mod:`.models` (what is generated), :mod:`.workloads` (the table of
workloads), :mod:`.case` (a workload or the user's model, ready to run), :mod:`.variants` (the float model and what is
compared with it), :mod:`.timing`, :mod:`.memory`, :mod:`.phases` and :mod:`.environment` (how it is measured), and
:mod:`.tables` and :mod:`.charts` (how it is shown).
"""
