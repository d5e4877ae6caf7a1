"""Plans a run: what it needs on a target, before any hardware is paid for.

The real training step is compiled for the target's topology, which takes a compiler
(libtpu, for TPUs) and no hardware. What is printed is the compiler's own accounting;
times are bounds computed from it, and nothing here was measured.
"""
