"""What benchmarks/accelerator.py measures: a module for each part."""
