"""Objectives: one file per method, all behind `base.Objective`."""
