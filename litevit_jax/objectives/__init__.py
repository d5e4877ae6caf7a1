"""What is learned: one file per method, all behind `base.Objective`."""
