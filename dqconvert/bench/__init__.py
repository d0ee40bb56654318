"""The benchmarks of ``dqconvert bench``, one module per command: :mod:`.train`, :mod:`.infer`, :mod:`.prepare`,
:mod:`.sweep`, :mod:`.plan`.

Below them, from the bottom: :mod:`.graphs` and :mod:`.models` (what is generated), :mod:`.workloads` (the table of
workloads), :mod:`.case` (a workload or the user's model, ready to run), :mod:`.variants` (training steps: the float
model's and what is compared with it), :mod:`.engines` (forwards, likewise), :mod:`.timing`, :mod:`.bandwidth`,
:mod:`.memory`, :mod:`.phases`, :mod:`.operations` and :mod:`.environment` (how it is measured), :mod:`.laws`,
:mod:`.plan_subject`, :mod:`.collectives` and :mod:`.probes` (what a plan is made from), and :mod:`.tables`,
:mod:`.plan_table` and :mod:`.charts` (how it is shown).
"""
