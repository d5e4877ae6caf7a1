"""Plans a run: memory, traffic and time on a target, before you pay for hardware.

The real training step is compiled for the target's topology, which takes a compiler
(libtpu, for TPUs) but no hardware. The printed numbers are the compiler's accounting,
and times are bounds computed from it; nothing is measured.
"""
